"""One method for each operation, against any broker: connections, routing, time-outs.

Not for retrying puts or sharing shards out: producer and consumer do that, on top of this. Called by producer,
consumer, cli and session. Read `client.py` first, then `connection.py`; `pool.py` keeps connections alive and
`routing.py` remembers which shard lies where.
"""

from streamkit.client.client import AsyncClient
from streamkit.client.sync import Client

__all__ = ["AsyncClient", "Client"]
