"""One node's shards, served: connections, puts, fetches, and the wiring of the coordinator.

Not for bytes on disk (`storage`), rules of agreement (`replication`) or of ownership (`leases`), nor for what
exists (`metadata`). `node.py` puts it together. Read `shard_server.py` for the life of a put, then `fetch.py`,
`service.py` (who answers what) and `link.py` (one connection's bounds).
"""
