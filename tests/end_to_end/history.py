"""What clients were told, noted in a few bytes a record, and a checker of these notes. Knows no cluster.

    lost         acknowledged, and not there
    duplicated   there twice
    reordered    behind a later record of its key and producer, elsewhere than was said, or with an older append time
    stale        a read that began long after an acknowledgement lacked the record
    phantom      read, and nobody put it; or read once, and another record there later

A put that failed may be there or not: its producer was told that this is unknown. Read `History.check` first.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

KEYS = 16
STALE_SECONDS_MAX = 5.0                    # a leader that was replaced notices sooner than that
_UNANSWERED, _FAILED, _FOUND = -1, -2, -3  # in `places`; the last one during the check
_SEQUENCE = (1 << 48) - 1
_CONTROL = 1                               # in `seen`: a note of the log's own
_NOTED_MAX = 20                            # violations of a kind that are kept in words


@dataclass(slots=True)
class Producer:
    """One producer's puts by number. places: shard << 48 | sequence + 1 (0: unknown), or why there is none."""

    name: str
    places: array[int] = field(default_factory=lambda: array("q"))

    def value(self, number: int) -> bytes:
        return f"{self.name} {self.key(number)} {number}".encode()

    def key(self, number: int) -> str:
        return f"k{(number * 2_654_435_761 >> 7) % KEYS}"


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as read: value is None for a note of the log's own."""

    sequence: int
    value: bytes | None
    append_time_ms: int


@dataclass(slots=True)
class Shard:
    """What is known of one shard. ends: (when, one past the highest sequence acknowledged by then), of late."""

    acknowledged: int = 0
    end: int = 0
    ends: deque[tuple[float, int]] = field(default_factory=deque)
    last_at: float = 0.0
    longest_gap: float = 0.0
    seen: array[int] = field(default_factory=lambda: array("Q"))
    high_watermark: int = 0


class History:
    """Notes while it happens; `check` at the end."""

    def __init__(self, shards: int) -> None:
        self.producers: dict[str, Producer] = {}
        self.shards = [Shard() for _ in range(shards)]
        self.put = self.acknowledged = self.failed = self.reads = 0
        self.errors: Counter[str] = Counter()
        self.stale_reads = 0               # also those that are excused: a moment old
        self.stale_seconds_max = 0.0
        self.wrong: Counter[str] = Counter()
        self.words: list[str] = []

    # ---- notes ------------------------------------------------------------------------------------------------

    def begin_put(self, producer: str) -> tuple[int, str, bytes]:
        """Number, key and value of that producer's next record."""
        by = self.producers.setdefault(producer, Producer(producer))
        number = len(by.places)
        by.places.append(_UNANSWERED)
        self.put += 1
        return number, by.key(number), by.value(number)

    def note_stored(self, producer: str, number: int, shard: int, sequence: int | None) -> None:
        """sequence: None when the broker no longer knew it."""
        self.producers[producer].places[number] = shard << 48 | (sequence + 1 if sequence is not None else 0)
        self.acknowledged += 1
        known, now = self.shards[shard], time.monotonic()
        known.acknowledged += 1
        known.longest_gap = max(known.longest_gap, now - known.last_at) if known.last_at else 0.0
        known.last_at = now
        if sequence is not None and sequence >= known.end:
            known.end = sequence + 1
            known.ends.append((now, known.end))
            while known.ends[0][0] < now - 4 * STALE_SECONDS_MAX:
                known.ends.popleft()

    def note_failed(self, producer: str, number: int, error: str) -> None:
        self.producers[producer].places[number] = _FAILED
        self.failed += 1
        self.errors[error] += 1

    def note_read(self, shard: int, began: float, high_watermark: int, records: Iterable[Stored]) -> None:
        """began: when the read was asked for."""
        known = self.shards[shard]
        self.reads += 1
        missing_since = None
        if known.end > high_watermark:
            missing_since = next((at for at, end in known.ends if at < began and end > high_watermark), None)
        if missing_since is not None:
            self.stale_reads += 1
            seconds = began - missing_since
            self.stale_seconds_max = max(self.stale_seconds_max, seconds)
            if seconds > STALE_SECONDS_MAX:
                self.note_wrong("stale", f"shard {shard}: a read lacked what was acknowledged {seconds:.1f} s before")
        known.high_watermark = max(known.high_watermark, high_watermark)
        for record in records:
            self._note_seen(shard, record)

    def _note_seen(self, shard: int, record: Stored) -> None:
        seen = self.shards[shard].seen
        while len(seen) <= record.sequence:
            seen.append(0)
        mark = _mark(record.value)
        if seen[record.sequence] not in (0, mark):
            self.note_wrong("phantom", f"shard {shard}: at {record.sequence} was not {record.value!r} before")
        seen[record.sequence] = mark

    # ---- while it runs ----------------------------------------------------------------------------------------

    def watch_gaps(self) -> None:
        """From now on."""
        now = time.monotonic()
        for shard in self.shards:
            shard.longest_gap, shard.last_at = 0.0, now

    @property
    def longest_gap(self) -> float:
        """For how long the shard that stood still longest acknowledged nothing, since `watch_gaps`."""
        now = time.monotonic()
        return max(max(shard.longest_gap, now - shard.last_at) for shard in self.shards)

    @property
    def counts(self) -> list[int]:
        """Records acknowledged by shard."""
        return [shard.acknowledged for shard in self.shards]

    # ---- at the end -------------------------------------------------------------------------------------------

    def check(self, shard: int, records: Iterable[Stored]) -> None:
        """All that the shard holds, in order; each shard once, and then `finish`."""
        last: dict[tuple[str, str], int] = {}
        expected, time_ms = 0, 0
        for record in records:
            if record.sequence != expected:
                self.note_wrong("lost", f"shard {shard}: after {expected - 1} comes {record.sequence}")
            expected = record.sequence + 1
            if record.append_time_ms < time_ms:
                self.note_wrong("reordered", f"shard {shard}: {record.sequence} is older than the record before it")
            time_ms = record.append_time_ms
            self._note_seen(shard, record)
            if record.value is not None:
                self._check_record(shard, record, last)
        if self.shards[shard].end > expected:
            self.note_wrong("lost", f"shard {shard} ends at {expected}; {self.shards[shard].end - 1} was acknowledged")
        if self.shards[shard].high_watermark > expected:
            self.note_wrong("lost", f"shard {shard} ends at {expected}; readers were told of more")

    def records(self) -> Iterator[tuple[int, int]]:
        """(shard, sequence) of every record that was read; notes of the log's own are none."""
        for shard, known in enumerate(self.shards):
            for sequence, mark in enumerate(known.seen):
                if mark > _CONTROL:
                    yield shard, sequence

    def _check_record(self, shard: int, record: Stored, last: dict[tuple[str, str], int]) -> None:
        value, place = record.value, shard << 48 | record.sequence + 1
        assert value is not None, "a record"
        name, _, rest = value.decode("utf-8", "replace").partition(" ")
        key, _, digits = rest.partition(" ")
        by = self.producers.get(name)
        if by is None or not digits.isdigit() or int(digits) >= len(by.places) or by.value(int(digits)) != value:
            self.note_wrong("phantom", f"shard {shard}: nobody put {value!r}, which is at {record.sequence}")
            return
        number = int(digits)
        said = by.places[number]
        if said == _FOUND:
            self.note_wrong("duplicated", f"{value!r} is there twice, again at {shard}/{record.sequence}")
        elif said >= 0 and said & _SEQUENCE and said != place:
            self.note_wrong("reordered", f"{value!r} is at {shard}/{record.sequence}, not where its put was told")
        elif said >= 0 and said >> 48 != shard:
            self.note_wrong("reordered", f"{value!r} is in shard {shard}, not where its put was told")
        by.places[number] = _FOUND
        if last.get((name, key), -1) > number:
            self.note_wrong("reordered", f"shard {shard}: {value!r} lies after number {last[name, key]} of its key")
        last[name, key] = number

    def finish(self) -> None:
        """After every shard was checked: what was acknowledged and not found."""
        for by in self.producers.values():
            for number, said in enumerate(by.places):
                if said >= 0:
                    self.note_wrong("lost", f"acknowledged {by.value(number)!r} is not there")
                elif said == _UNANSWERED:
                    self.note_wrong("unanswered", f"{by.value(number)!r} was put, and neither acknowledged nor refused")

    def note_wrong(self, kind: str, words: str) -> None:
        self.wrong[kind] += 1
        if self.wrong[kind] <= _NOTED_MAX:
            self.words.append(f"{kind}: {words}")


def _mark(value: bytes | None) -> int:
    if value is None:
        return _CONTROL
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little") | 2
