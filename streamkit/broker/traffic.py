"""What a shard took lately, read from its own log: nothing is counted while records are put.

    put_rates    records and bytes a second, from the sparse index in memory
    traffic_of   where a split halves it: a sample of the last minutes' batches, weighed by their bytes and their age

Called by `streams` (whoever describes shards) and `service` (whoever splits). `halved` is the rule, and pure; read it
first. Why it is so: docs/decisions/0097.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from streamkit._core.batch import Batch, read_header
from streamkit.broker.shard_server import ShardServer
from streamkit.runtime.interfaces import Buffer
from streamkit.storage import ShardLog

RATE_MS = 60_000
WINDOW_MS = 10 * 60_000            # how far back a split looks,
HALF_LIFE_MS = 2 * 60_000          # and after how long a record counts half
RECORDS_MIN = 16                   # looked at; below that it is chance which key came
UNEVEN = 0.9                       # a half that would keep more than this is no half
_PLACES = 64                       # of the log, evenly spaced,
_PLACE_BYTES = 16 * 1024           # what is read there, or one batch that is larger,
_PLACE_RECORDS_MAX = 64            # and how many of its records are looked at, about


@dataclass(frozen=True, slots=True)
class Weight:
    """Of one hash key. key: a partition key that has it."""

    bytes: float
    key: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """at: the second half's first hash key; None when there is none: below RECORDS_MIN, or one key is too heavy.

    below: the first half's share of the bytes. key, key_share: of the heaviest key.
    """

    at: int | None
    records: int
    below: float = 0.0
    key: str = ""
    key_share: float = 0.0


def put_rates(log: ShardLog, now_ms: int) -> tuple[float, float]:
    """(records, stored bytes) a second, over the last minute or as long as there is something."""
    records, size = log.appended_since(now_ms - RATE_MS)
    if not records:
        return 0.0, 0.0
    seconds = max(1_000, min(RATE_MS, now_ms - log.first_append_ms())) / 1000
    return records / seconds, size / seconds


def halved(weights: Mapping[int, Weight], records: int) -> Traffic:
    """The border between two of these hash keys that parts their bytes most evenly."""
    if records < RECORDS_MIN:
        return Traffic(None, records)
    keys = sorted(weights)
    total = sum(weights[key].bytes for key in keys)
    heaviest = max(keys, key=lambda key: weights[key].bytes)
    top, top_share = weights[heaviest].key, weights[heaviest].bytes / total
    at, best, below = None, 1.0, 0.0
    left = 0.0
    for before, after in pairwise(keys):
        left += weights[before].bytes
        larger = max(left, total - left) / total
        if larger < best:
            at, best, below = (before + after + 1) // 2, larger, left / total
    if best > UNEVEN:
        return Traffic(None, records, key=top, key_share=top_share)
    return Traffic(at, records, below, top, top_share)


async def traffic_of(served: ShardServer, now_ms: int) -> Traffic:
    """Reads some batches at each of _PLACES places, where they lie. Raises SequenceTrimmed, CorruptFile."""
    log = served.log
    since = now_ms - WINDOW_MS
    await log.warm_time(since)
    first = max(log.log_start, log.sequence_at_time(since))
    end = served.high_watermark
    weights: dict[int, Weight] = {}
    looked_at, seen_until = 0, first
    for place in range(_PLACES):
        at = max(first + (end - first) * place // _PLACES, log.log_start)
        if seen_until <= at < end:                     # not inside what the place before showed
            found = await log.read_cold(at, end, _PLACE_BYTES)
            if not found:
                break
            looked_at += _weigh(found, now_ms, (end - first) / _PLACES, weights)
            seen_until = read_header(found[-1]).end_sequence
            await asyncio.sleep(0)                     # each is a fraction of a millisecond
    return halved(weights, looked_at)


def _weigh(found: Sequence[Buffer], now_ms: int, stands_for: float, weights: dict[int, Weight]) -> int:
    """Add what these batches say of the `stands_for` records around them; how many of theirs were looked at."""
    batches = [batch for batch in map(_opened, found) if not batch.is_control]
    count = sum(map(len, batches))
    step = -(-count // _PLACE_RECORDS_MAX)
    looked_at = 0
    for batch in batches:
        age_ms = max(0, now_ms - batch.append_time_ms)
        weight = max(stands_for / count, 1.0) * step * 0.5 ** (age_ms / HALF_LIFE_MS)
        for index in range(0, len(batch), step):
            record = batch[index]
            hash_key, size = int.from_bytes(record.hash_key, "big"), weight * (len(record.data) + len(record.key) + 1)
            known = weights.get(hash_key)
            weights[hash_key] = Weight(size, record.key) if known is None else Weight(known.bytes + size, known.key)
            looked_at += 1
    return looked_at


def _opened(buffer: Buffer) -> Batch[object]:
    return Batch(buffer)
