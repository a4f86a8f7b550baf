"""Whole processes, measured: a real `streamkit serve` and a real client process on loopback.

Each measurement states records/s, MB/s, latencies, durability, replicas and CPU seconds, and checks its own answer:
a figure whose check fails is an error, not a figure. `python -m benchmarks.paths` runs them; `--tiny` is the form
that the tests run. Read `produce.py` first; `processes.py` starts and accounts, `report.py` prints. Client code runs
in `clients.py`.
"""
