"""Bedrock: the compiled kernels. Per-record work and file I/O; knows bytes, not brokers.

Each kernel serves one named room; nothing here imports Python code of streamkit except `errors`.
Read `batch.pxd` first: it draws the one byte format that travels, rests, is copied and is decoded.
"""
