"""How a node keeps its logs on disk and in memory."""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.errors import InvalidConfig

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """Sizes in bytes, times in milliseconds. The defaults suit a node with one disk and a few GiB of memory."""

    segment_bytes: int = 64 * MIB          # a segment is full at this size
    journal_bytes: int = 64 * MIB          # one journal file; a few of them are in use at a time
    journal_step_bytes: int = 256 * KIB    # a new journal file is zeroed ahead in such steps, with pauses
    group_bytes_max: int = 8 * MIB         # of batches in one commit
    bypass_bytes: int = 256 * KIB          # a shard's share of a commit that is synced in its segment, not journalled
    batch_bytes_max: int = 10 * MIB + 64 * KIB
    tail_bytes: int = 256 * MIB            # recent batches kept in memory, over all shards
    files_open_max: int = 512              # segment files open at once
    producers_max: int = 100_000           # followed by one shard
    checkpoint_ms: int = 30_000            # longest time a written segment stays unsynced
    free_bytes_min: int = 256 * MIB        # below it puts are refused
    reserve_bytes: int = 16 * MIB          # a file given up when the disk is full, so that what was taken in can land

    def __post_init__(self) -> None:
        self._check("segment_bytes", 64 * KIB, 4096 * MIB - 1)
        self._check("journal_bytes", MIB, 4096 * MIB)
        self._check("journal_step_bytes", 64 * KIB, self.journal_bytes)
        self._check("group_bytes_max", 64 * KIB, self.journal_bytes // 2)
        self._check("bypass_bytes", 4 * KIB, self.group_bytes_max)
        self._check("batch_bytes_max", 4 * KIB, 64 * MIB)
        self._check("tail_bytes", 0, 1 << 50)
        self._check("files_open_max", 8, 1 << 20)
        self._check("producers_max", 1, 1 << 32)
        self._check("checkpoint_ms", 10, 3_600_000)
        self._check("free_bytes_min", 0, 1 << 50)
        self._check("reserve_bytes", 0, 1 << 40)
        for name in ("journal_bytes", "journal_step_bytes"):
            if getattr(self, name) % 4096:
                raise InvalidConfig(
                    f"{name} must be a multiple of 4096", try_="use a power of two", key=name, value=getattr(self, name)
                )

    def _check(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise InvalidConfig(
                f"{name} must be {low}..{high}, got {value}", try_=f"choose {name} in that range", key=name, value=value
            )
