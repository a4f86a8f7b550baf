"""Shards shared out among workers: leases, fetching, user code, retries and checkpoints, on the client's side.

Not for the rules of ownership (`leases`, behind the broker's coordinator) nor for how batches look (`_core.batch`).
Called by users, session, cli, and by every service that reads streams. Read `consumer.py` for what users see, then
`member.py` (one worker's life), `shard_consumer.py` (one lease's life) and `failure.py` (what happens when a record
cannot be handled). Everything but user code runs on one event loop; user code runs where `stage.py` says.
"""
