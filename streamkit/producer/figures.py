"""What a sender counts: once a batch, never once a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamkit._core.histogram import Histogram
from streamkit.errors import SequenceGap, ShardClosed, StreamkitError, Throttled, WrongShard

PERCENTILES = (50, 90, 99, 99.9)


class Attempt(NamedTuple):
    """One try to store a record's batch. error: None for the one that stored it.

    pause_s: since the try before it, or since the record's batch was opened.
    """

    pause_s: float
    duration_s: float
    error: StreamkitError | None


@dataclass(slots=True)
class Figures:
    """Counters by name, and histograms: microseconds, records, bytes, percent."""

    sealed: Counter[str] = field(default_factory=Counter)        # why a batch was sealed → batches
    retries: Counter[str] = field(default_factory=Counter)       # error code → batches sent again
    failures: Counter[str] = field(default_factory=Counter)      # error code → records
    reroutes: Counter[str] = field(default_factory=Counter)      # wrong_shard, shard_closed → batches
    throttled: int = 0                                           # batches refused with Throttled
    throttled_s: float = 0.0                                     # pauses that followed
    sequence_gaps: int = 0
    identities: int = 0                                          # asked for after the first
    raw_bytes_sent: int = 0
    ack_us: Histogram = field(default_factory=Histogram)         # records: batch opened → stored
    queue_us: Histogram = field(default_factory=Histogram)       # batches: opened → sent for the first time
    request_us: Histogram = field(default_factory=Histogram)     # tries: sent → answered
    batch_records: Histogram = field(default_factory=Histogram)
    batch_bytes: Histogram = field(default_factory=Histogram)    # as sent
    compressed_percent: Histogram = field(default_factory=Histogram)     # of the raw size

    def refused(self, error: StreamkitError) -> None:
        """A try ended in `error`."""
        self.retries[error.code] += 1
        self.throttled += isinstance(error, Throttled)
        self.sequence_gaps += isinstance(error, SequenceGap)
        if isinstance(error, WrongShard | ShardClosed):
            self.reroutes[error.code] += 1

    def batch(self, reason: str, count: int, raw_bytes: int, sent_bytes: int) -> None:
        """A batch was sealed."""
        self.sealed[reason] += 1
        self.raw_bytes_sent += raw_bytes
        self.batch_records.record(count)
        self.batch_bytes.record(sent_bytes)
        self.compressed_percent.record(100 * sent_bytes // raw_bytes)

    def add(self, other: Figures) -> None:
        for name in self.__slots__:
            ours, theirs = getattr(self, name), getattr(other, name)
            if isinstance(ours, Histogram):
                ours.merge(theirs)
            elif isinstance(ours, Counter):
                ours.update(theirs)
            else:
                setattr(self, name, ours + theirs)


def total(figures: Iterable[Figures]) -> Figures:
    """All of them together."""
    made = Figures()
    for each in figures:
        made.add(each)
    return made


def summary(histogram: Histogram, scale: float = 1.0) -> dict[str, Any]:
    """count, mean and percentiles, each value times `scale`."""
    if not histogram.count:
        return {"count": 0}
    found: dict[str, Any] = {"count": histogram.count, "mean": histogram.total * scale / histogram.count}
    found |= {f"p{percent:g}": histogram.percentile(percent) * scale for percent in PERCENTILES}
    return found
