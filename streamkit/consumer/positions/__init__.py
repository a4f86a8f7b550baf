"""Where a shard's position may be kept besides the coordinator: in the store that a handler writes to.

`sql.py` has the statements that three databases share, `files.py` the same promise for files. Each module names its
library only when a position of its kind is opened. The driver that uses them is `consumer.exactly_once`.
"""
