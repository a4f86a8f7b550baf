"""What exists: streams with their shards and epochs, and producer identities.

    streams/<name>        the stream, with its shards, as JSON
    producers/<name>      {producer_id, epoch, instance} of a named producer
    counters/producer     the last producer id given

A stream is CREATING until its shard logs exist, and DELETING until they are gone; a node that finds one of
these at start finishes the work. `Catalog.streams` is this node's copy of the whole list, changed only
together with the store.
Called by the broker. Read `StreamEntry`, then `Catalog.open`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from streamkit.errors import (
    CorruptFile,
    LimitReached,
    ProducerFenced,
    StoreUnavailable,
    StreamBusy,
    StreamExists,
    StreamNotFound,
)
from streamkit.metadata.certainty import swap_certainly
from streamkit.metadata.store import Store, Swap
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import Durability, StreamConfig, StreamDescription, StreamStatus, check_stream_name
from streamkit.runtime.interfaces import Runtime

APPLICATIONS_STREAM = "__applications"      # the coordinator's log; never listed
_STREAMS = "streams/"
_PRODUCERS = "producers/"
_PRODUCER_COUNTER = "counters/producer"
_PRODUCER_EPOCH_MAX = 0xFFFF
_COMPARED_MAX = 200
_TRIES = 20                                  # of a change that others are first with


class ShardEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One shard of a StreamEntry; uuid in hexadecimal; hash bounds as decimal text: JSON numbers end at 2^53."""

    ordinal: int
    uuid: str
    hash_start: str
    hash_end: str
    created_ms: int
    closed_ms: int | None = None
    parents: tuple[int, ...] = ()
    children: tuple[int, ...] = ()
    epoch: int = 0
    end: int | None = None


class StreamEntry(msgspec.Struct, frozen=True):
    """What the store holds under streams/<name>."""

    name: str
    status: StreamStatus
    retention_hours: int
    retention_bytes: int | None
    durability: Durability
    record_bytes_max: int
    codec: str
    created_ms: int
    map_version: int
    shards: tuple[ShardEntry, ...]
    format: int = 1


class ProducerEntry(msgspec.Struct, frozen=True):
    producer_id: int
    epoch: int
    instance: str = ""                     # hexadecimal: who opened the name last


def to_entry(stream: StreamDescription) -> StreamEntry:
    config = stream.config
    return StreamEntry(
        name=stream.name, status=stream.status, retention_hours=config.retention_hours,
        retention_bytes=config.retention_bytes, durability=config.durability,
        record_bytes_max=config.record_bytes_max, codec=config.codec,
        created_ms=stream.created_ms, map_version=stream.map_version,
        shards=tuple(
            ShardEntry(
                ordinal=shard.ordinal, uuid=shard.uuid.hex(), hash_start=str(shard.hash_start),
                hash_end=str(shard.hash_end), created_ms=shard.created_ms, closed_ms=shard.closed_ms,
                parents=shard.parents, children=shard.children, epoch=shard.epoch, end=shard.end,
            )
            for shard in stream.shards
        ),
    )


def from_entry(entry: StreamEntry) -> StreamDescription:
    return StreamDescription(
        name=entry.name, status=entry.status,
        config=StreamConfig(
            shards=max(1, sum(shard.closed_ms is None for shard in entry.shards)),
            retention_hours=entry.retention_hours, retention_bytes=entry.retention_bytes,
            durability=entry.durability, record_bytes_max=entry.record_bytes_max, codec=entry.codec,
        ),
        created_ms=entry.created_ms, map_version=entry.map_version,
        shards=tuple(
            Shard(
                ordinal=shard.ordinal, uuid=bytes.fromhex(shard.uuid), hash_start=int(shard.hash_start),
                hash_end=int(shard.hash_end), created_ms=shard.created_ms, closed_ms=shard.closed_ms,
                parents=shard.parents, children=shard.children, epoch=shard.epoch, end=shard.end,
            )
            for shard in entry.shards
        ),
    )


_encode = msgspec.json.Encoder().encode
_stream_decoder = msgspec.json.Decoder(StreamEntry)
_producer_decoder = msgspec.json.Decoder(ProducerEntry)


def encode_stream(stream: StreamDescription) -> bytes:
    return _encode(to_entry(stream))


def decode_stream(key: str, value: bytes) -> StreamDescription:
    """Raises CorruptFile."""
    try:
        return from_entry(_stream_decoder.decode(value))
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptFile(
            f"the metadata under {key} cannot be read: {error}",
            try_="restore the metadata from a backup", path=key, position=0, reason=str(error),
        ) from error


class Catalog:
    """Open with `await Catalog.open(store, runtime, node=…)`."""

    def __init__(self, store: Store, runtime: Runtime, *, node: str, shards_max: int) -> None:
        self.node = node
        self.address = ""                                 # where this node's shards answer; set once it listens
        self.streams: dict[str, StreamDescription] = {}
        self._store = store
        self._runtime = runtime
        self._shards_max = shards_max
        self._revisions: dict[str, int] = {}
        self._giving = asyncio.Lock()                     # one at a time: a crowd would only lose races to each other

    @classmethod
    async def open(cls, store: Store, runtime: Runtime, *, node: str = "", shards_max: int = 10_000) -> Catalog:
        """Read everything and raise the epoch of every shard by one, in one transaction. Raises CorruptFile."""
        catalog = cls(store, runtime, node=node, shards_max=shards_max)
        while True:
            entries = await store.list(_STREAMS)
            streams = [decode_stream(entry.key, entry.value) for entry in entries]
            raised = [
                replace(stream, shards=tuple(replace(shard, epoch=shard.epoch + 1) for shard in stream.shards))
                for stream in streams
            ]
            swaps = [
                Swap(entry.key, entry.revision, encode_stream(stream))
                for entry, stream in zip(entries, raised, strict=True)
            ]
            revision = await store.compare_and_swap_many(swaps) if swaps else 0
            if revision is not None:
                break
        catalog.streams = {stream.name: stream for stream in raised}
        catalog._revisions = dict.fromkeys(catalog.streams, revision)
        return catalog

    # -- reading -------------------------------------------------------------------------------------------

    def stream(self, name: str) -> StreamDescription:
        """Raises StreamNotFound, with a near name when there is one."""
        try:
            return self.streams[name]
        except KeyError:
            raise self._not_found(name) from None

    def names(self) -> list[str]:
        """Of the users' streams, sorted; those being deleted are gone already."""
        return sorted(
            name for name, stream in self.streams.items()
            if not name.startswith("__") and stream.status is not StreamStatus.DELETING
        )

    def located(self, stream: StreamDescription) -> StreamDescription:
        """With the leader and address that clients are told."""
        shards = tuple(replace(shard, leader=self.node, address=self.address) for shard in stream.shards)
        return replace(stream, shards=shards)

    def _not_found(self, name: str) -> StreamNotFound:
        names = self.names()
        few = names if len(names) <= _COMPARED_MAX else ()     # each is compared letter by letter
        near = next(iter(difflib.get_close_matches(name, few, n=1, cutoff=0.6)), None)
        hint = f'; did you mean "{near}"?' if near else ""
        shown = name if len(name) <= 140 else name[:140] + "…"
        return StreamNotFound(
            f'stream "{shown}" does not exist{hint}', try_="streamkit stream list", stream=shown, near=near
        )

    # -- changing ------------------------------------------------------------------------------------------

    async def create(self, name: str, config: StreamConfig) -> StreamDescription:
        """Register it as CREATING, with shards and epochs of its own. Raises StreamExists, StreamBusy, LimitReached."""
        stream = self.new_stream(name, config)
        await self._save(stream)
        return stream

    def new_stream(self, name: str, config: StreamConfig) -> StreamDescription:
        """As it would be created; nothing is written. Raises InvalidRequest, StreamExists, StreamBusy, LimitReached."""
        check_stream_name(name, internal=name == APPLICATIONS_STREAM)
        if (there := self.streams.get(name)) is not None:
            raise self._taken(there)
        if name != APPLICATIONS_STREAM:        # the coordinator's own log takes nothing from what a user may make
            self.check_room(config.shards)
        now_ms = self._runtime.clock.now_ms()
        return StreamDescription(
            name=name, status=StreamStatus.CREATING, config=config, created_ms=now_ms, map_version=1,
            shards=tuple(
                Shard(
                    ordinal=ordinal, uuid=self._runtime.random.uuid(), hash_start=start, hash_end=end,
                    created_ms=now_ms, epoch=1,
                )
                for ordinal, (start, end) in enumerate(even_ranges(config.shards))
            ),
        )

    def check_room(self, shards: int) -> None:
        """For that many more. Closed shards count: they have a log like any other. Raises LimitReached."""
        there = sum(len(s.shards) for s in self.streams.values() if s.name != APPLICATIONS_STREAM)
        if there + shards > self._shards_max:
            raise LimitReached(
                f"{shards} more shards make {there + shards}, the limit is {self._shards_max}",
                try_="delete streams that are no longer used, or raise streams.shards_max",
                limit=self._shards_max, scope="shards",
            )

    def _taken(self, there: StreamDescription) -> StreamExists | StreamBusy:
        if there.status is StreamStatus.ACTIVE:
            return StreamExists(
                f'stream "{there.name}" exists already', try_=f"streamkit stream describe {there.name}",
                stream=there.name,
            )
        return StreamBusy(
            f'stream "{there.name}" is {there.status.value}', try_="try again in a moment",
            stream=there.name, status=there.status.value,
        )

    async def set_status(self, name: str, status: StreamStatus) -> StreamDescription:
        stream = replace(self.stream(name), status=status)
        await self._save(stream)
        return stream

    async def alter(self, name: str, change: Callable[[StreamConfig], StreamConfig]) -> StreamDescription:
        """Other settings; the shards stay. `change` may be called again, with what another has changed meanwhile.

        Raises what `change` raises, StreamNotFound, StreamBusy, StoreUnavailable.
        """
        for _ in range(_TRIES):
            # What this node knows may be old: it may not have heard yet that the stream is there.
            if not await self.look(name):
                raise self._not_found(name)
            stream = self.stream(name)
            if stream.status is StreamStatus.DELETING:
                raise self._not_found(name)
            if stream.status is not StreamStatus.ACTIVE:
                raise self._taken(stream)
            value = encode_stream(replace(stream, config=change(stream.config)))
            with contextlib.suppress(StreamBusy):
                await self.commit((Swap(_STREAMS + name, self.revision(name), value),), name)
                return self.stream(name)
        raise StreamBusy(
            f'stream "{name}" is being changed by someone else', try_="try again in a moment",
            stream=name, status="changing",
        )

    async def forget(self, name: str) -> None:
        """The last step of a deletion: the stream's shard logs are gone."""
        await self._swap(name, None)
        del self.streams[name], self._revisions[name]

    async def _save(self, stream: StreamDescription) -> None:
        self._revisions[stream.name] = await self._swap(stream.name, encode_stream(stream))
        self.streams[stream.name] = stream

    async def _swap(self, name: str, value: bytes | None) -> int:
        revision = await self._store.compare_and_swap(_STREAMS + name, self._revisions.get(name, 0), value)
        if revision is None:
            raise StreamBusy(
                f'stream "{name}" is being changed by someone else', try_="try again in a moment",
                stream=name, status="changing",
            )
        return revision

    def revision(self, name: str) -> int:
        """Of the stream's entry; 0: there is none."""
        return self._revisions.get(name, 0)

    async def commit(self, swaps: Sequence[Swap], name: str) -> int:
        """One transaction on a stream's keys, the witness first; shown at once. Raises StreamBusy, StoreUnavailable."""
        revision = await swap_certainly(self._store, swaps)
        if revision is None:
            raise StreamBusy(
                f'stream "{name}" is being changed by someone else', try_="try again in a moment",
                stream=name, status="changing",
            )
        for swap in swaps:
            if swap.key == _STREAMS + name and swap.value is not None:
                self.streams[name] = decode_stream(swap.key, swap.value)
                self._revisions[name] = revision
        return revision

    async def look(self, name: str) -> bool:
        """What the store holds of the stream now; False: nothing. Raises StoreUnavailable."""
        value, revision = await self._store.read(_STREAMS + name)
        if value is not None and revision > self.revision(name):
            self.streams[name] = decode_stream(_STREAMS + name, value)
            self._revisions[name] = revision
        return value is not None

    # -- producers -----------------------------------------------------------------------------------------

    async def new_producer(self, name: str = "", instance: bytes = b"") -> tuple[int, int]:
        """(producer_id, producer_epoch): a new id, or for a known name its id with the next epoch.

        instance: whose the name is from now on.
        """
        async with self._giving:
            return await self._new_producer(name, instance.hex(), renew=False)

    async def renew_producer(self, name: str, instance: bytes) -> tuple[int, int]:
        """The next epoch of a name for whoever opened it last. Raises ProducerFenced when that was another."""
        async with self._giving:
            return await self._new_producer(name, instance.hex(), renew=True)

    async def holds_name(self, name: str, instance: bytes) -> bool:
        """Whether nobody opened the name after `instance`, as far as the store has told. Raises StoreUnavailable."""
        return (await self._holder(name, instance.hex())).instance == instance.hex()

    async def _holder(self, name: str, instance: str) -> ProducerEntry:
        """Who opened the name last.

        A read of the store may be old. Who is told that another holds its name stops for good, so that is written once
        more before it is said: this fails when it is not the last word.
        """
        key = _PRODUCERS + name
        for _ in range(_TRIES):
            known, revision = await self._store.read(key)
            entry = _producer_decoder.decode(known) if known is not None else None
            if entry is None or entry.instance == instance:
                break
            if await self._store.compare_and_swap(key, revision, known) is not None:
                return entry
        if entry is None or entry.instance != instance:
            raise StoreUnavailable(
                f'who opened "{name[:80]}" last is not known yet', try_="try again: what answered may be behind",
                store="", outcome="not_done",
            )  # fmt: skip
        return entry

    async def _new_producer(self, name: str, instance: str, *, renew: bool) -> tuple[int, int]:
        while True:
            key = _PRODUCERS + name
            known, revision = await self._store.read(key) if name else (None, 0)
            entry = _producer_decoder.decode(known) if known is not None else None
            if renew and (entry is None or entry.instance != instance):
                if (entry := await self._holder(name, instance)).instance == instance:
                    continue
                raise ProducerFenced(f'"{name}" was opened again, by a newer instance of this producer',
                                     try_="stop this one", newest=entry.epoch)  # fmt: skip
            if entry is not None and entry.epoch < _PRODUCER_EPOCH_MAX:
                raised = ProducerEntry(entry.producer_id, entry.epoch + 1, instance)
                if await self._store.compare_and_swap(key, revision, _encode(raised)) is not None:
                    return raised.producer_id, raised.epoch
                continue
            last, counter_revision = await self._store.read(_PRODUCER_COUNTER)
            given = ProducerEntry(int(last or b"0") + 1, 0, instance)
            swaps = [Swap(_PRODUCER_COUNTER, counter_revision, str(given.producer_id).encode())]
            if name:
                swaps.append(Swap(key, revision, _encode(given)))
            if await self._store.compare_and_swap_many(swaps) is not None:
                return given.producer_id, given.epoch
