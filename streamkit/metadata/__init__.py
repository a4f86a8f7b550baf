"""What exists and who leads it: streams, shards, epochs, producer identities; and the store that holds them.

Not for records, leases or checkpoints: those change often and live in logs. The broker asks the catalog; only
the catalog speaks to the store. Read `store.py` first, then `catalog.py`.
"""
