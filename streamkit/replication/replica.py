"""One copy of a shard, as its leader knows it."""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.model.stream import Durability


@dataclass(frozen=True, slots=True)
class Ends:
    """How far a log reaches, three times: durable <= written <= appended.

    appended: in memory; written: in the page cache; durable: on disk (fdatasync).
    """

    appended: int
    written: int
    durable: int

    def __post_init__(self) -> None:
        assert self.durable <= self.written <= self.appended, "bytes are appended, then written, then synced"

    def at(self, durability: Durability) -> int:
        """The end that counts for an acknowledgement at that level."""
        if durability is Durability.FSYNC:
            return self.durable
        return self.written if durability is Durability.OS else self.appended
