"""Many workers of one application, and many producers, against one coordinator: how fast leases move, what they cost.

Start with `works.py`; `worker.py` is a worker in a process of its own, to be killed.
"""
