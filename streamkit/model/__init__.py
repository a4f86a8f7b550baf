"""The words everyone agrees on: frozen values for streams, shards, sequences, positions and limits.

Not for behaviour, I/O or clocks. Everybody above the ground floor imports it. Read `shard.py` first.
"""
