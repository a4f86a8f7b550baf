"""How the copies of a shard agree: `step(event) -> Effects`, nothing else.

Not for bytes, disks, sockets or clocks: the broker's shard_server is the owner that carries effects out, the
simulator drives the same code. With one copy the quorum is one; the rules are the same. Read `leader.py` first.
"""
