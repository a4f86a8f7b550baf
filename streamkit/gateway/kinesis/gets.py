"""GetShardIterator and GetRecords: stored batches, taken apart by a kernel and written down in the reply's format."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import cbor2
import msgspec

from streamkit._core.batch import read_header
from streamkit._core.replies import EncodedRecords, encode_records
from streamkit.gateway.calls import Call, Reply
from streamkit.gateway.errors import invalid_argument, throttled
from streamkit.gateway.kinesis.directory import Directory, Found, no_such_stream
from streamkit.gateway.kinesis.names import parse_stream_arn
from streamkit.gateway.kinesis.reading import fetch, start_of
from streamkit.gateway.kinesis.requests import own, place_of, shard_of
from streamkit.gateway.kinesis.shards import children_of
from streamkit.gateway.kinesis.throttles import Throttles
from streamkit.gateway.kinesis.tokens import Tokens
from streamkit.model.shard import Shard

COUNT_MAX = 10_000
BYTES_MAX = 10 << 20
_FETCH_BYTES = 4 << 20
_RECORD_BYTES_GUESS = 2_048                # how much is fetched for a small Limit
_READS_AT_ONCE = 32                        # each holds up to 10 MiB, and their encoded form; none waits for records


@dataclass(frozen=True, slots=True)
class Part:
    """Records of a shard in the reply's format, and how things stand after them.

    position: where to read on. control: the log wrote something for itself, as when it was closed.
    at_end: of a closed shard, whose children are told instead.
    """

    records: EncodedRecords
    position: int
    behind_ms: int
    control: bool
    at_end: bool


async def read_part(
    directory: Directory, found: Found, shard: Shard, start: int, *, cbor: bool, count_max: int = COUNT_MAX,
    bytes_max: int = BYTES_MAX, wait_ms: int = 0,
) -> Part:
    """From `start` on, as much as the bounds allow. wait_ms: for the first record. Raises StreamkitError."""
    batches: list[memoryview] = []
    position, count, size, high_watermark = start, 0, 0, start
    first, control = start, False
    while count < count_max and size < bytes_max and not (shard.end is not None and position >= shard.end):
        ask = min(_FETCH_BYTES, bytes_max - size, max(64 << 10, (count_max - count) * _RECORD_BYTES_GUESS))
        fetched, began = await fetch(
            directory, found, shard, position, bytes_max=ask, wait_ms=0 if batches else wait_ms
        )
        if not batches:
            first = began                              # later than asked for where retention was quicker
        high_watermark = fetched.high_watermark
        if not fetched.batches:
            position = max(position, began)
            break
        for batch in fetched.batches:
            header = read_header(batch)
            batches.append(batch)
            if header.is_control:
                control = True
            else:
                count += header.end_sequence - max(header.base_sequence, position)
                size += header.raw_bytes
        position = fetched.next_sequence
        if position >= high_watermark:
            break
    records = encode_records(
        batches, first, count_max=count_max, bytes_max=bytes_max, ordinal=shard.ordinal, created_ms=shard.created_ms,
        cbor=cbor, kms=found.note.encryption == "KMS",
    )
    position = records.next_sequence if batches else max(first, position)
    behind_ms = 0
    if position < high_watermark and records.count:
        behind_ms = max(0, directory.clock.now_ms() - records.last_append_ms)
    at_end = shard.end is not None and position >= shard.end and bool(children_of(found, shard))
    return Part(records, position, behind_ms, control, at_end)


class Gets:
    def __init__(self, directory: Directory, tokens: Tokens, throttles: Throttles) -> None:
        self._directory = directory
        self._tokens = tokens
        self._throttles = throttles
        self._turns = asyncio.Semaphore(_READS_AT_ONCE)

    async def get_shard_iterator(self, call: Call) -> dict[str, Any]:
        params, directory = call.params, self._directory
        found, shard = await shard_of(directory, place_of(params, call.caller), params["ShardId"])
        if not self._throttles.iterator(found, shard.uuid, directory.clock.monotonic_ms()):
            raise _exceeded(found, shard)
        sequence = await start_of(
            directory, found, shard, params["ShardIteratorType"], params.get("StartingSequenceNumber"),
            params.get("Timestamp"),
        )
        call.dry_run()
        return {"ShardIterator": self._tokens.iterator(found.place, shard.ordinal, shard.uuid, sequence)}

    async def get_records(self, call: Call) -> Reply:
        params, directory, clock = call.params, self._directory, self._directory.clock
        iterator = self._tokens.read_iterator(params["ShardIterator"])
        place, ordinal, uuid, sequence = iterator.place, iterator.ordinal, iterator.shard, iterator.sequence
        own(place, call.caller)
        if "StreamARN" in params and parse_stream_arn(params["StreamARN"]) != place:
            raise invalid_argument(f"StreamARN {params['StreamARN']} is not that of the ShardIterator.")
        found, shard = await directory.with_shard(place, ordinal, uuid)
        if shard is None:
            raise no_such_stream(place)                # another one of that name, or a shard that has expired
        if not self._throttles.read(found, uuid, clock.monotonic_ms()):
            raise _exceeded(found, shard)
        call.dry_run()
        async with self._turns:
            part = await read_part(
                directory, found, shard, sequence, cbor=call.cbor, count_max=params.get("Limit", COUNT_MAX)
            )
        if part.control:
            directory.forget(place)                    # the shard's map may be another one now
        self._throttles.returned(found, uuid, part.records.payload_bytes, clock.monotonic_ms())
        members: dict[str, Any] = {"MillisBehindLatest": part.behind_ms}
        if part.at_end:
            members["ChildShards"] = children_of(found, shard)
        else:
            members["NextShardIterator"] = self._tokens.iterator(place, ordinal, uuid, part.position)
        return Reply(with_records(part.records.body, members, cbor=call.cbor))


def with_records(records: bytes, members: dict[str, Any], *, cbor: bool) -> bytes:
    """An object of `Records`, which is encoded already, and of other members, one at least, without timestamps."""
    if not cbor:
        return b"".join((b'{"Records":', records, b",", memoryview(msgspec.json.encode(members))[1:]))
    others = cbor2.dumps(members)
    assert others[0] & 0xE0 == 0xA0 and others[0] < 0xB7, "a short map, whose count is in its first byte"
    return bytes((others[0] + 1,)) + b"gRecords" + records + others[1:]


def _exceeded(found: Found, shard: Shard) -> Exception:
    place = found.place
    return throttled(f"Rate exceeded for shard {shard.id} in stream {place.name} under account {place.account}.")
