"""AWS's limits, for those who want to meet them before they do: token buckets by shard, consumer or account.

Off unless the server or a stream's tag switches them on. A bucket is kept by each gateway for itself: with several
nodes behind one name each gives the whole rate. Pure: whoever asks says what time it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from streamkit.gateway.errors import limit_exceeded
from streamkit.gateway.kinesis.config import AWS_LIMITS, LIMITS_TAG, Limits
from streamkit.gateway.kinesis.directory import Found

_BUCKETS_MAX = 100_000
_RECORD_BURST_BYTES = 10 << 20             # a large record may be put at once; the rate pays it back
# Calls a second and account, of what changes or lists streams and consumers.
_CONTROL = {
    "ListShards": 1_000, "DescribeStreamSummary": 20, "DescribeStreamConsumer": 20, "DescribeStream": 10,
    "ListStreams": 5, "CreateStream": 5, "DeleteStream": 5, "SplitShard": 5, "MergeShards": 5, "AddTagsToStream": 5,
    "RemoveTagsFromStream": 5, "ListTagsForStream": 5, "RegisterStreamConsumer": 5, "DeregisterStreamConsumer": 5,
    "ListStreamConsumers": 5, "DescribeLimits": 1, "UpdateShardCount": 10 / 86_400,
}  # fmt: skip


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_ms: int


class Throttles:
    def __init__(self, limits: Limits) -> None:
        self._server = limits
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def of(self, found: Found) -> Limits:
        """What holds for a stream."""
        match found.note.tags.get(LIMITS_TAG):
            case "aws":
                return AWS_LIMITS
            case "off":
                return Limits()
            case _:
                return self._server

    def write(self, found: Found, shard: bytes, records: int, size: int, now_ms: int) -> bool:
        """Whether a shard takes so many records and bytes now."""
        limits = self.of(found)
        if not limits.shard_write_records and not limits.shard_write_bytes:
            return True
        burst = max(_RECORD_BURST_BYTES, limits.shard_write_bytes)
        return (
            self._room((shard, "records"), records, limits.shard_write_records, limits.shard_write_records, now_ms)
            and self._take((shard, "bytes"), size, limits.shard_write_bytes, burst, now_ms)
            and self._take((shard, "records"), records, limits.shard_write_records, limits.shard_write_records, now_ms)
        )

    def read(self, found: Found, shard: bytes, now_ms: int) -> bool:
        """Whether GetRecords may be called. What it returned is told with `returned`."""
        limits = self.of(found)
        return self._room((shard, "out"), 1, limits.shard_read_bytes, limits.shard_read_bytes, now_ms) and self._take(
            (shard, "calls"), 1, limits.shard_read_calls, limits.shard_read_calls, now_ms
        )

    def returned(self, found: Found, shard: bytes, size: int, now_ms: int) -> None:
        """Bytes that went out; more than the rate make the shard's readers wait for the next call."""
        rate = self.of(found).shard_read_bytes
        if rate:
            self._filled((shard, "out"), rate, rate, now_ms).tokens -= size

    def iterator(self, found: Found, shard: bytes, now_ms: int) -> bool:
        rate = self.of(found).iterator_calls
        return self._take((shard, "iterators"), 1, rate, rate, now_ms)

    def subscribe(self, found: Found, key: Hashable, now_ms: int) -> bool:
        rate = self.of(found).subscribe_calls
        return self._take((key, "subscribe"), 1, rate, rate, now_ms)

    def counts(self, operation: str) -> bool:
        """Whether calls of an operation have a rate."""
        return self._server.control_plane and operation in _CONTROL

    def control(self, operation: str, account: str, region: str, now_ms: int) -> None:
        """Raises ApiError (LimitExceededException)."""
        rate = _CONTROL[operation]
        if not self._take((account, region, operation), 1, rate, max(rate, 10), now_ms):
            raise limit_exceeded(f"Rate exceeded for {operation} under account {account}.")

    def _room(self, key: Hashable, count: int, rate: float, burst: float, now_ms: int) -> bool:
        # Whether at least something is left: what is larger than the burst must pass some time.
        return not rate or self._filled(key, rate, burst, now_ms).tokens >= min(count, burst)

    def _take(self, key: Hashable, count: int, rate: float, burst: float, now_ms: int) -> bool:
        if not self._room(key, count, rate, burst, now_ms):
            return False
        if rate:
            self._filled(key, rate, burst, now_ms).tokens -= count
        return True

    def _filled(self, key: Hashable, rate: float, burst: float, now_ms: int) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _BUCKETS_MAX:
                self._buckets.popitem(last=False)          # the one that was not used for longest
            bucket = self._buckets[key] = _Bucket(burst, now_ms)
        else:
            self._buckets.move_to_end(key)
        bucket.tokens = min(burst, bucket.tokens + rate * max(0, now_ms - bucket.at_ms) / 1_000)
        bucket.at_ms = now_ms
        return bucket
