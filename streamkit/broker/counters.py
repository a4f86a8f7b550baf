"""What the broker counts, in plain integers; observability reads them at scrape time."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from streamkit.observability.buckets import LATENCY_BOUNDS


class StreamCounters:
    """Of one stream: the latency of its puts, and how many were refused for what."""

    __slots__ = ("put_failures", "put_latency", "put_seconds")

    def __init__(self) -> None:
        self.put_failures: defaultdict[str, int] = defaultdict(int)          # code → puts
        self.put_latency = [0] * (len(LATENCY_BOUNDS) + 1)
        self.put_seconds = 0.0

    def puts_took(self, seconds: float, count: int) -> None:
        """`count` puts that arrived together were acknowledged after `seconds`."""
        self.put_latency[bisect_left(LATENCY_BOUNDS, seconds)] += count
        self.put_seconds += seconds * count


class Counters:
    """One for each node."""

    def __init__(self) -> None:
        self.puts = 0
        self.fetches = 0
        self.messages: defaultdict[str, int] = defaultdict(int)              # kind of message → requests
        self.failures: defaultdict[tuple[str, str], int] = defaultdict(int)  # (operation, code) → requests
        self.connections_refused = 0
        self.streams: defaultdict[str, StreamCounters] = defaultdict(StreamCounters)     # of streams that are served

    def put_ms(self, share: float) -> float:
        """A bound that this share of all puts stays below: the bucket's lower end; 0.0 before the first."""
        counts = [sum(column) for column in zip(*(each.put_latency for each in self.streams.values()), strict=True)]
        wanted, seen = sum(counts) * share, 0
        for index, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return 1000 * LATENCY_BOUNDS[index - 1] if index else 0.0
        return 0.0

    def requests(self) -> dict[str, int]:
        return {"put": self.puts, "fetch": self.fetches, **self.messages}
