"""The Kinesis API over HTTP, measured: streamkit and the stand-ins kinesalite, kinesis-local and moto, in one run.

Starting, accounting and the descriptions of the stand-ins come from `benchmarks.peers` and `benchmarks.paths`; what is
here is a lean HTTP client (`api.py`), what is done with it (`works.py`), and the table against the targets
(`report.py`). `python -m benchmarks.gateway` runs everything. Read `works.py` first.
"""
