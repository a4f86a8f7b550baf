"""What was read of one shard and is not yet being written; when that is enough for a chunk."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from streamkit._core.batch import Batch
from streamkit.delivery.chunk import Place
from streamkit.errors import InvalidUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """When a range is written: at so many bytes of payload, or so long after its first record was read.

    0 seconds: what was read together is written at once. Bytes count payloads, before formats and compression; ranges
    that bytes end are the same however often the worker changes.
    """

    bytes_max: int = 5 * 1024 * 1024
    seconds_max: float = 60.0
    records_max: int = 1_000_000

    def __post_init__(self) -> None:
        for name, least in (("bytes_max", 1), ("seconds_max", 0), ("records_max", 1)):
            if getattr(self, name) < least:
                raise InvalidUse(f"{name} must be at least {least}, got {getattr(self, name)}",
                                 try_=f"Buffer({name}=…)", argument=name)


@dataclass(frozen=True, slots=True)
class Range:
    """Records of one shard in order, as parts of the batches they came in, from `start` to `end`, which is open.

    oldest_ms: arrival of the first, Unix milliseconds.
    """

    start: Place
    end: Place
    parts: tuple[Batch[Any], ...]
    payload_bytes: int
    count: int
    oldest_ms: int


class Gathering:
    """The open range of one shard. Pure.

    start: the first place that is not yet in a range. until: a range that was planned before ends here; None: the
    buffer's rule holds.
    """

    def __init__(self, buffer: Buffer, start: Place, until: Place | None = None) -> None:
        self._buffer = buffer
        self._start = self._end = start
        self.until = until
        self._parts: list[Batch[Any]] = []
        self.payload_bytes = 0
        self.count = 0
        self.is_full = False

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def oldest_ms(self) -> int:
        """Arrival of its first record, Unix milliseconds; it holds one."""
        return round(self._parts[0][0].arrived.timestamp() * 1000)

    def add(self, batch: Batch[Any]) -> int:
        """Takes leading records until it is full; how many. A record that is larger than the buffer fills it alone."""
        assert not self.is_full, "a full range is taken first"
        if self.until is not None:
            taken = self._before(batch, self.until)
            self._append(batch, taken, sum(map(len, batch.part(0, taken).values())))
            self.is_full = taken < len(batch) or batch.place(len(batch)) >= self.until
            return taken
        room = min(len(batch), self._buffer.records_max - self.count)
        sums = list(accumulate(map(len, batch.part(0, room).values())))
        taken = min(room, bisect_left(sums, self._buffer.bytes_max - self.payload_bytes) + 1)
        self._append(batch, taken, sums[taken - 1])
        self.is_full = self.payload_bytes >= self._buffer.bytes_max or self.count >= self._buffer.records_max
        return taken

    def take(self) -> Range:
        """What was gathered; the next range begins at its end."""
        end = self.until if self.until is not None else self._end
        taken = Range(self._start, end, tuple(self._parts), self.payload_bytes, self.count, self.oldest_ms)
        self._start = self._end = end
        self._parts, self.payload_bytes, self.count, self.is_full, self.until = [], 0, 0, False, None
        return taken

    def _append(self, batch: Batch[Any], taken: int, payload_bytes: int) -> None:
        if taken:
            self._parts.append(batch.part(0, taken))
            self._end = batch.place(taken)
            self.payload_bytes += payload_bytes
            self.count += taken

    @staticmethod
    def _before(batch: Batch[Any], until: Place) -> int:
        low, high = 0, len(batch)
        while low < high:                  # places grow with the index
            middle = (low + high) // 2
            if batch.place(middle) < until:
                low = middle + 1
            else:
                high = middle
        return low
