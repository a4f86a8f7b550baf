"""The outside world as small interfaces, and their real halves.

The only room that may read a clock, draw random numbers, open sockets or files, start threads. Not for
rules: what to write or send is decided above. Every room gets a `Runtime`; the simulator hands out another.
Read `interfaces.py` first.
"""
