"""A cluster in a bottle: whole nodes, producers and workers on a simulated clock, network and disk, from one seed.

It replaces `runtime` alone; every room above runs as shipped. One seed fixes everything that happens, so a run that
breaks a promise can be had again. Not for unit tests of a rule (those call `step`), not for speed measurements.
Called by `streamkit simulate` and the tests. Read `world.py` first, then `run.py`.
"""
