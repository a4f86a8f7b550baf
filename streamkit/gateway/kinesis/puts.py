"""PutRecord and PutRecords: bodies packed into batches by a kernel, and sent to the leaders of their shards.

Nothing is retried whose fate is unknown: this API has no idempotence, and a client that is told of a failure decides
for itself. What was surely not done (a leader that moved, a shard that closed) is done again here, out of the client's
sight, for as long as `request_ms`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any, cast

from streamkit._core.entries import MalformedBody, Packed, PutEntries
from streamkit.errors import (
    ConnectionFailed,
    NodeDraining,
    NotLeader,
    ShardClosed,
    ShardNotFound,
    StreamkitError,
    TimedOut,
    WrongShard,
)
from streamkit.gateway.calls import Call, Reply
from streamkit.gateway.errors import ApiError, dry_run, invalid_argument, serialization, unavailable, validation
from streamkit.gateway.kinesis.directory import Directory, Found
from streamkit.gateway.kinesis.model import MODEL
from streamkit.gateway.kinesis.requests import place_of
from streamkit.gateway.kinesis.throttles import Throttles
from streamkit.gateway.shapes import Boolean, Model, Structure
from streamkit.gateway.validation import VIOLATIONS_MAX, refusal, typed, violations
from streamkit.gateway.wire import CBOR, JSON
from streamkit.model.sequence import parse_sequence_number
from streamkit.protocol.frames import PutReceipt
from streamkit.runtime.backoff import Backoff

logger = logging.getLogger("streamkit.gateway")

_REQUEST_BYTES_MAX = 10 << 20
_CODEC = 1                                 # lz4, where it is worth while
_FAILURE = ("InternalFailure", "Internal Service Failure")
_SKEW_S = 1
_NAMES_MAX = 1_000
_RECORDS_MAX = 500
_RECORDS = Model({"Records": (f"Records!:[Nothing]1..{_RECORDS_MAX}", "")}, {}, {"Nothing": Boolean()}).input("Records")
_PACKED = frozenset({"Records", "Data", "PartitionKey", "ExplicitHashKey"})    # what the kernel checks

Outcome = PutReceipt | tuple[str, str]     # or (ErrorCode, ErrorMessage)


class Puts:
    def __init__(self, directory: Directory, throttles: Throttles) -> None:
        self._directory = directory
        self._throttles = throttles
        self._names: set[str] = set()                  # of streams, found to be of the right form
        self._others = {name: _without_records(MODEL.input(name)) for name in ("PutRecord", "PutRecords")}

    async def put_record(self, call: Call) -> Reply:
        found, entries = await self._checked(call, single=True)
        packed, outcomes, found = await self._put(found, entries)
        outcome = outcomes[0]
        if outcome == _FAILURE:
            raise unavailable("The record could not be stored now; try again.")
        if isinstance(outcome, tuple):
            raise ApiError(*outcome)
        return self._reply(entries, packed, outcomes, found)

    async def put_records(self, call: Call) -> Reply:
        found, entries = await self._checked(call, single=False)
        packed, outcomes, found = await self._put(found, entries)
        return self._reply(entries, packed, outcomes, found)

    # -- before --------------------------------------------------------------------------------------------

    async def _checked(self, call: Call, *, single: bool) -> tuple[Found, PutEntries]:
        try:
            entries = PutEntries(call.body, cbor=call.cbor, single=single)
        except MalformedBody:
            raise serialization() from None
        members, name = entries.members, entries.members.get("StreamName")
        # Most requests have nothing beside the records but the name of a stream that was named before.
        known = len(members) == 1 and type(name) is str and name in self._names
        if not known:
            members = typed(self._others[call.operation], members, CBOR if call.cbor else JSON, "", 0)
        broken = entries.violations()
        if broken and await self._distributes(members, call):
            broken = entries.violations(key_optional=True)
        if not single and not 1 <= entries.count <= _RECORDS_MAX:
            broken += violations(_RECORDS, {"Records": range(entries.count)} if entries.has_records else {}, "")
        if not known:
            broken += violations(self._others[call.operation], members, "")
        if broken:
            raise refusal(broken[:VIOLATIONS_MAX])
        if not known and "StreamName" in members:
            if len(self._names) >= _NAMES_MAX:
                self._names.clear()
            self._names.add(members["StreamName"])
        found = await self._directory.usable(place_of(members, call.caller))
        assert found.stream is not None, "it is usable"
        # Streams of streamkit's own library may take less than any of this API.
        size_max, place = min(found.note.max_record_kib << 10, found.stream.config.record_bytes_max), found.place
        if entries.largest() > size_max:
            raise validation(
                f"A record of {entries.largest()} bytes, data and partition key together, exceeds the {size_max} bytes "
                f"that stream {place.name} under account {place.account} takes."
            )
        if (key := entries.bad_hash_key()) is not None:
            raise invalid_argument(
                "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. "
                f"Specified value was {key}"
            )
        if not single and entries.payload_bytes > _REQUEST_BYTES_MAX:
            raise invalid_argument(
                f"Records size exceeds {_REQUEST_BYTES_MAX >> 20} MB limit: data and partition keys have "
                f"{entries.payload_bytes} bytes."
            )
        if (ordering := members.get("SequenceNumberForOrdering")) is not None:
            self._check_ordering(ordering)
        if members.get("DryRun"):
            raise dry_run()
        return found, entries

    async def _distributes(self, members: dict[str, Any], call: Call) -> bool:
        # Whether records may come without a key; what is wrong with the stream is told later, in its turn.
        with contextlib.suppress(ApiError):
            return (await self._directory.usable(place_of(members, call.caller))).note.distribution == "AUTO"
        return False

    def _check_ordering(self, number: str) -> None:
        try:
            arrived_s = parse_sequence_number(number).arrived_s
        except StreamkitError:
            raise invalid_argument(f"SequenceNumberForOrdering {number} is not a sequence number.") from None
        if arrived_s > self._directory.clock.now_ms() // 1000 + _SKEW_S:
            raise invalid_argument(f"SequenceNumberForOrdering {number} is of a record yet to come.")

    # -- the deed ------------------------------------------------------------------------------------------

    async def _put(self, found: Found, entries: PutEntries) -> tuple[list[Packed], list[Outcome], Found]:
        """What was put, how it went, and the stream as it was at last."""
        assert found.stream is not None, "it is usable"
        automatic = found.note.distribution == "AUTO"
        packed = entries.pack(
            found.table, codec=_CODEC, map_version=found.stream.map_version, automatic=automatic
        )
        outcomes = await self._send(found, packed)
        if None not in outcomes:
            return packed, cast("list[Outcome]", outcomes), found
        clock, client = self._directory.clock, self._directory.client
        until_ms = clock.monotonic_ms() + self._directory.config.request_ms
        backoff = Backoff(client.runtime.random, 5, 200)
        done: list[Packed] = []
        results: list[Outcome] = []
        while True:
            moved: list[Packed] = []
            for each, outcome in zip(packed, outcomes, strict=True):
                if outcome is None:
                    moved.append(each)
                else:
                    done.append(each)
                    results.append(outcome)
            if not moved:
                return done, results, found
            if clock.monotonic_ms() >= until_ms:
                return [*done, *moved], [*results, *[_FAILURE] * len(moved)], found
            await asyncio.sleep(backoff.next_ms() / 1_000)
            self._directory.forget(found.place)
            try:
                now = await self._directory.usable(found.place)
                assert now.stream is not None, "it is usable"
                packed = entries.pack(
                    now.table, codec=_CODEC, map_version=now.stream.map_version, again=moved, automatic=automatic
                )
            except (StreamkitError, ApiError) as error:
                if not done:
                    raise
                # What was stored already must be told: an error for all would have it stored twice.
                logger.info("kinesis.put_waits", extra={"facts": {"error": str(error)}})
                packed, outcomes = moved, [None] * len(moved)
                continue
            found = now
            outcomes = await self._send(found, packed)

    async def _send(self, found: Found, packed: list[Packed]) -> list[Outcome | None]:
        """What came of each; None: surely nothing, and another leader or shard would take it."""
        if len(packed) == 1:
            sent_alone = self._begin(found, packed[0])
            return [sent_alone if isinstance(sent_alone, tuple) else await self._outcome(sent_alone)]
        outcomes: list[Outcome | None] = [None] * len(packed)
        left = [*range(len(packed))]
        while left:
            # One batch a shard at a time: the next must not overtake one that another leader has to take.
            first = {packed[i].shard: i for i in reversed(left)}
            wave = sorted(first.values())
            sent = [self._begin(found, packed[i]) for i in wave]
            for i, under_way in zip(wave, sent, strict=True):
                outcomes[i] = under_way if isinstance(under_way, tuple) else await self._outcome(under_way)
            left = [i for i in left if i not in wave and outcomes[first[packed[i].shard]] is not None]
        return outcomes

    def _begin(self, found: Found, packed: Packed) -> asyncio.Future[PutReceipt] | tuple[str, str]:
        shard = found.shard(packed.shard)
        assert shard is not None, "a table names shards that are there"
        random, config = self._directory.client.runtime.random, self._directory.config
        now_ms = self._directory.clock.monotonic_ms()
        if (config.put_throttle and random.uniform() < config.put_throttle) or not self._throttles.write(
            found, shard.uuid, packed.count, packed.payload_bytes, now_ms
        ):
            name, account = found.place.name, found.place.account
            told = f"Rate exceeded for shard {shard.id} in stream {name} under account {account}."
            return "ProvisionedThroughputExceededException", told
        return self._directory.client.put_batch(shard, packed.batch)

    async def _outcome(self, under_way: asyncio.Future[PutReceipt]) -> Outcome | None:
        try:
            return await under_way
        except StreamkitError as error:
            if _is_undone(error):
                return None
            logger.info("kinesis.put_failed", extra={"facts": {"code": error.code, "error": str(error)}})
            return _FAILURE

    def _reply(self, entries: PutEntries, packed: list[Packed], outcomes: list[Outcome], found: Found) -> Reply:
        encryption = "KMS" if found.note.encryption == "KMS" else None
        return Reply(entries.reply(packed, outcomes, found.origins, encryption=encryption))


def _is_undone(error: StreamkitError) -> bool:
    """Whether the put was refused before anything was done, and may be taken by another leader or shard."""
    if isinstance(error, ConnectionFailed | TimedOut):
        return not error.facts.get("sent", True)
    return isinstance(error, NotLeader | NodeDraining | ShardClosed | WrongShard | ShardNotFound)


def _without_records(shape: Structure) -> Structure:
    members = {name: member for name, member in shape.members.items() if name not in _PACKED}
    return replace(shape, members=members, required=[name for name in shape.required if name in members])
