"""As amazon_kclpy.v2: record processors of the second generation. Read processor.py."""
