"""Shards' logs on a disk: group commit, segments, recovery, retention.

A batch goes into the shard's tail in memory and into the node's journal; one sync covers every append that waits.
Then it is written to its segment, which a checkpoint syncs before the journal file is used again. Not for what may be
acknowledged or read: `replication` and `broker` decide that from durable_end and written_end. Called by the node and
the broker. Read `log_directory.py` first, then `_core/log.pyx` and `recovery.py`.
"""

from streamkit._core.log import Appended
from streamkit.storage.changes import NewShard
from streamkit.storage.config import StorageConfig
from streamkit.storage.identity import ClusterFacts
from streamkit.storage.log_directory import LogDirectory
from streamkit.storage.scrubber import Scrubber
from streamkit.storage.shard_log import Damage, ShardLog

__all__ = [
    "Appended", "ClusterFacts", "Damage", "LogDirectory", "NewShard", "Scrubber", "ShardLog", "StorageConfig",
]  # fmt: skip
