"""The streams of a node: catalog, shard logs and shard servers kept in step.

    create   catalog: CREATING ──▶ logs on disk ──▶ catalog: ACTIVE
    delete   catalog: DELETING ──▶ logs dropped ──▶ catalog: forgotten

A node that was cut off in between finishes the work when it opens; a change that failed is undone, or taken up by
the next attempt. A log that the catalog does not know is left
alone and reported, never deleted; a shard whose log is missing stops the node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from streamkit.broker.counters import Counters
from streamkit.broker.shard_server import ShardServer
from streamkit.broker.traffic import put_rates
from streamkit.errors import (
    CorruptFile,
    InvalidPosition,
    NodeDraining,
    ShardNotFound,
    StreamBusy,
    StreamExists,
    StreamkitError,
    StreamNotFound,
)
from streamkit.metadata.catalog import APPLICATIONS_STREAM, Catalog
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus, check_stream_name
from streamkit.protocol.messages import ShardState
from streamkit.runtime.interfaces import Clock
from streamkit.storage import LogDirectory

logger = logging.getLogger("streamkit.broker")


class Streams:
    """Open with `await Streams.open(…)`."""

    def __init__(
        self, catalog: Catalog, directory: LogDirectory, counters: Counters, clock: Clock, *,
        auto_create: StreamConfig | None,
    ) -> None:
        """auto_create: what a stream that is asked for and missing is created with; None: it is an error."""
        self.catalog = catalog
        self.directory = directory
        self.shards: dict[bytes, ShardServer] = {}         # all that this node leads
        self.public: dict[bytes, ShardServer] = {}         # those that clients may name
        self.counters = counters
        self._auto_create = auto_create
        self._clock = clock
        self._changing = asyncio.Lock()
        self._closed = False

    async def open(self) -> None:
        """Raises CorruptFile when a shard's log is missing."""
        for stream in list(self.catalog.streams.values()):
            if stream.status is StreamStatus.DELETING:
                await self._drop(stream)
            elif stream.status is StreamStatus.CREATING:
                await self._make(stream)
            else:
                self.serve_stream(stream)
        orphans = [uuid.hex() for uuid in self.directory.shards if uuid not in self.shards]
        if orphans:
            logger.warning("storage.orphans_found", extra={"facts": {"count": len(orphans), "first": orphans[0]}})
        if APPLICATIONS_STREAM not in self.catalog.streams:
            await self._create(APPLICATIONS_STREAM, StreamConfig())

    def close(self) -> None:
        self._closed = True

    # -- what exists ---------------------------------------------------------------------------------------

    def stream(self, name: str) -> StreamDescription:
        """Raises StreamNotFound; so does a stream that is being deleted."""
        stream = self.catalog.stream(name)
        if stream.status is StreamStatus.DELETING:
            raise StreamNotFound(
                f'stream "{name}" is being deleted', try_="streamkit stream list", stream=name, near=None
            )
        return stream

    async def find(self, name: str) -> StreamDescription:
        """The stream, located; created first where the node was told to. Raises StreamNotFound."""
        there = self.catalog.streams.get(name)
        if there is not None and there.status is StreamStatus.CREATING:
            async with self._changing:                     # its shards are not served before that is done
                there = self.catalog.streams.get(name)
        if self._auto_create is not None and (there is None or there.status is not StreamStatus.ACTIVE):
            check_stream_name(name)
            try:
                return await self.create(name, self._auto_create)
            except StreamExists:
                logger.debug("stream.found_after_all")
        return self.located(self.stream(name))

    def shard(self, uuid: bytes) -> ShardServer:
        """Raises ShardNotFound."""
        try:
            return self.public[uuid]
        except KeyError:
            raise self.missing(uuid) from None

    def located(self, stream: StreamDescription) -> StreamDescription:
        """With the leaders and addresses that clients are told."""
        return self.catalog.located(stream)

    def missing(self, uuid: bytes) -> StreamkitError:
        """Why this node does not serve the shard."""
        return unknown_shard(uuid)

    def refusal(self, uuid: bytes, error: StreamkitError) -> StreamkitError:
        """What a producer is told when a put failed with `error`."""
        return error

    # -- changes -------------------------------------------------------------------------------------------

    async def create(self, name: str, config: StreamConfig) -> StreamDescription:
        """Raises InvalidRequest, StreamExists, StreamBusy, LimitReached, DiskFull."""
        check_stream_name(name)
        return self.located(await self._create(name, config))

    async def _create(self, name: str, config: StreamConfig) -> StreamDescription:
        async with self._changing:
            self._check_open()
            left = self.catalog.streams.get(name)
            if left is not None and left.status is not StreamStatus.ACTIVE:
                await self._settle(left)
            stream = await self.catalog.create(name, config)
            try:
                stream = await self._make(stream)
            except StreamkitError:
                await self._give_up(stream)
                raise
        logger.info("stream.created", extra={"facts": {"stream": name, "shards": config.shards}})
        return stream

    async def delete(self, name: str) -> None:
        """Raises StreamNotFound. Returns when the records are gone."""
        check_stream_name(name)
        async with self._changing:
            self._check_open()
            self.stream(name)
            stream = await self.catalog.set_status(name, StreamStatus.DELETING)
            await self._drop(stream)
        logger.info("stream.deleted", extra={"facts": {"stream": name, "shards": len(stream.shards)}})

    async def alter(self, name: str, change: Callable[[StreamConfig], StreamConfig]) -> StreamDescription:
        """Other settings for it. Raises what `change` raises, InvalidRequest, StreamNotFound, StreamBusy."""
        check_stream_name(name)
        async with self._changing:
            self._check_open()
            stream = await self.catalog.alter(name, change)
            self._altered(stream)
        config = stream.config
        logger.info("stream.altered", extra={"facts": {
            "stream": name, "retention_hours": config.retention_hours, "retention_bytes": config.retention_bytes,
            "record_bytes_max": config.record_bytes_max,
        }})  # fmt: skip
        return self.located(stream)

    def _altered(self, stream: StreamDescription) -> None:
        """Whoever keeps something of its settings is told."""
        for shard in stream.shards:
            if (served := self.shards.get(shard.uuid)) is not None:
                served.learn(stream, shard)

    async def _settle(self, left: StreamDescription) -> None:
        """An earlier change of it failed half-way, and nobody is at it."""
        await self._drop(left)

    async def _give_up(self, stream: StreamDescription) -> None:
        """It could not be made: the name is free again, at the latest with the next attempt or the next start."""
        try:
            await self._drop(stream)
        except StreamkitError as error:
            logger.warning("stream.left_behind", extra={"facts": {"stream": stream.name, "error": str(error)}})

    async def _make(self, stream: StreamDescription) -> StreamDescription:
        missing = [shard.uuid for shard in stream.shards if shard.uuid not in self.directory.shards]
        await self.directory.create_shards(missing)
        stream = await self.catalog.set_status(stream.name, StreamStatus.ACTIVE)
        self.serve_stream(stream)
        return stream

    async def _drop(self, stream: StreamDescription) -> None:
        await self.drop_shards(stream.shards)
        self.counters.streams.pop(stream.name, None)
        await self.catalog.forget(stream.name)

    async def drop_shards(self, shards: Sequence[Shard]) -> None:
        """They are not served any more, and their logs go."""
        for shard in shards:
            self.public.pop(shard.uuid, None)
            if (served := self.shards.pop(shard.uuid, None)) is not None:
                served.gone = True
                for link in served.fail(unknown_shard(shard.uuid)):
                    link.flush_soon()
        await self.directory.drop_shards([shard.uuid for shard in shards if shard.uuid in self.directory.shards])

    def serve_stream(self, stream: StreamDescription) -> None:
        """Its shards as they are now: those that are served already learn what changed."""
        for shard in stream.shards:
            if (known := self.shards.get(shard.uuid)) is not None:
                known.learn(stream, shard)
                continue
            log = self.directory.shards.get(shard.uuid)
            if log is None:
                raise CorruptFile(
                    f"shard {shard.id} of stream {stream.name} is in the metadata but not in the data directory",
                    try_="restore the directory whole: metadata and shards belong together",
                    path=shard.uuid.hex(), position=0, reason="missing shard",
                )
            log.set_range(shard.hash_start, shard.hash_end - 1)
            served = ShardServer(stream, shard, log, replica=self.directory.node_id,
                                 counters=self.counters.streams[stream.name])  # fmt: skip
            self.shards[shard.uuid] = served
            if stream.name != APPLICATIONS_STREAM:
                self.public[shard.uuid] = served

    def _check_open(self) -> None:
        if self._closed:
            raise NodeDraining("the node is stopping", try_="try again when it is back", node=self.catalog.node)

    # -- what shards hold, for clients and for the coordinator ---------------------------------------------

    def leads(self, uuid: bytes) -> bool:
        return uuid in self.shards

    def high_watermark(self, uuid: bytes) -> int:
        return self.shard(uuid).high_watermark

    def resolve(self, uuid: bytes, kind: str, value: int) -> int:
        """The first sequence to read, between log_start and the high watermark. Raises InvalidPosition."""
        shard = self.shard(uuid)
        log_start, high_watermark = shard.log.log_start, shard.high_watermark
        match kind:
            case "trim_horizon":
                return log_start
            case "latest":
                return high_watermark
            case "at_sequence" if value <= shard.log.log_end:
                return max(log_start, value)
            case "after_sequence" if value < shard.log.log_end:
                return max(log_start, value + 1)
            case "at_time":
                return max(log_start, min(shard.log.sequence_at_time(value), high_watermark))
        raise InvalidPosition(
            f"{kind.replace('_', ' ')} {value} names no place in {shard.stream_name}/{shard.shard.id}, "
            f"which ends at {shard.log.log_end}",
            try_="use trim_horizon, latest, a time, or a sequence number of this shard",
            position=f"{kind} {value}", shard=shard.shard.id,
        )

    def append_time_of(self, uuid: bytes, sequence: int) -> int | None:
        """When the record at `sequence`, or the first kept after it, arrived; None: there is none."""
        shard = self.shard(uuid)
        return shard.log.arrived_ms(sequence, shard.high_watermark)

    def retention_hours(self, name: str) -> int:
        return self.stream(name).config.retention_hours

    def backlog(self, uuid: bytes, sequence: int) -> tuple[int, int]:
        """(log_start, stored bytes from `sequence` on)."""
        log = self.shard(uuid).log
        return log.log_start, log.bytes_after(sequence)

    async def states_of(self, name: str) -> tuple[ShardState, ...]:
        """What every shard holds. Raises StreamNotFound, StreamBusy."""
        return self.states(name)

    def states(self, name: str) -> tuple[ShardState, ...]:
        stream = self.stream(name)
        if stream.status is not StreamStatus.ACTIVE:
            raise StreamBusy(
                f'stream "{name}" is {stream.status.value}', try_="try again in a moment",
                stream=name, status=stream.status.value,
            )
        return tuple(self._state(self.shards[shard.uuid], shard) for shard in stream.shards)

    def _state(self, served: ShardServer, shard: Shard) -> ShardState:
        log = served.log
        empty = log.log_start == log.log_end
        records_rate, bytes_rate = put_rates(log, self._clock.now_ms())
        return ShardState(
            ordinal=shard.ordinal, log_start=log.log_start, high_watermark=served.high_watermark, log_end=log.log_end,
            stored_bytes=log.stored_bytes, first_append_ms=None if empty else log.first_append_ms(),
            last_append_ms=None if empty else log.last_append_ms, records_appended=served.put_records,
            put_records_rate=records_rate, put_bytes_rate=bytes_rate,
        )


def unknown_shard(uuid: bytes) -> ShardNotFound:
    return ShardNotFound(
        "the shard does not exist; its stream may have been deleted", try_="streamkit stream list", shard=uuid.hex()
    )
