"""The Kinesis API on streamkit's streams."""
