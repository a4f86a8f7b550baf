"""What exists, who holds it, who leads it and who lives; and the store in which the nodes of a cluster agree on that.

Not for records, leases or checkpoints: those change often and live in logs. The broker asks the catalog, the replica
sets and the members, which follow the store and never make a reader wait; only this room speaks to the store.
Read `store.py` first, then `catalog.py`; of a cluster, `members.py`, `replica_sets.py` and `cluster_catalog.py`.
"""
