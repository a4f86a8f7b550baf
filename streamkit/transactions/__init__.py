"""Records for several shards, with a position or without: all of them are stored, or none.

A redo log: what a transaction puts is sealed and numbered first, then decided as one entry of the coordinator's log,
and only then sent to its shards. So nothing undecided is ever in a shard, and readers need to know nothing. Whoever
finds decided outputs that were left carries them out once more: the numbers make a repeat harmless.
Not for whoever asks to decide: a consumer does with a lease, a producer with its name. The broker decides and looks
after what was left. Read `outputs.py`, then `lineage.py` and `carrying.py`.
"""
