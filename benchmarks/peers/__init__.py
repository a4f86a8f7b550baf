"""The same work on streamkit and on the systems one would take instead, alternating on one machine.

`make bench-peers-install` puts the peers into build/peers, `make bench-peers` starts each in turn on free loopback
ports and temporary directories, and writes the table, JSON and a plot. Each system is one file in `systems` behind
the interface in `system.py`; what is measured is in `works.py`, the same for all; `client.py` is the process that
loads. A peer that is absent is a row with the reason. Read `system.py` first.
"""
