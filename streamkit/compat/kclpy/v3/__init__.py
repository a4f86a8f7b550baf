"""As amazon_kclpy.v3: record processors of the third generation. Read processor.py."""
