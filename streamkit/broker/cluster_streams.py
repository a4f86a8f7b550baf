"""The streams of a cluster, as one node knows them: all that exist, and those of their shards that it leads.

    create   replica sets and stream (CREATING) in the store ▸ nodes make copies, leaders come ▸ ACTIVE
    delete   DELETING ▸ replica sets and stream leave the store ▸ nodes drop their copies

Any node may be asked for either. What a shard holds is told by its leader; of shards led elsewhere this node knows
what its own copy knows, or what their leaders said last (`look_elsewhere`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from streamkit.broker.counters import Counters
from streamkit.broker.shard_server import ShardServer
from streamkit.broker.streams import Streams
from streamkit.errors import (
    CannotPlace,
    ConnectionFailed,
    DiskFailed,
    NotLeader,
    StreamBusy,
    StreamkitError,
    TimedOut,
)
from streamkit.metadata.catalog import APPLICATIONS_STREAM
from streamkit.metadata.cluster_catalog import ClusterCatalog
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol.messages import JoinApplication, ShardState
from streamkit.protocol.peers import AskLeader, LeaderSays
from streamkit.runtime.interfaces import Clock
from streamkit.storage import LogDirectory

if TYPE_CHECKING:
    from streamkit.broker.coordination import Coordination
    from streamkit.broker.copies import Copies
    from streamkit.broker.reshard import Reshards

logger = logging.getLogger("streamkit.broker")

_LOOK_SECONDS = 0.02
_NODES_SECONDS = 1.0               # how long a creation waits for nodes that are just coming
_LEADERS_SECONDS = 20.0            # how long a creation waits for leaders
_ASK_TIMEOUT_MS = 3_000
_TRIES = 5


class ClusterStreams(Streams):
    """shards: those that this node leads now; elections put them in and take them out."""

    catalog: ClusterCatalog
    copies: Copies
    coordination: Coordination
    reshards: Reshards

    def __init__(
        self, catalog: ClusterCatalog, directory: LogDirectory, counters: Counters, clock: Clock, *,
        auto_create: StreamConfig | None,
    ) -> None:  # fmt: skip
        super().__init__(catalog, directory, counters, clock, auto_create=auto_create)
        self.replica_sets = catalog.replica_sets
        catalog.on_change.append(self._stream_changed)
        self._places: dict[str, tuple[int, dict[bytes, Shard]]] = {}
        self._elsewhere: dict[bytes, ShardState] = {}      # what leaders said last
        self._resolved: dict[tuple[bytes, str, int], int] = {}

    async def open(self) -> None:
        """Nothing to serve before elections; what lies here without being known is reported."""
        orphans = [uuid.hex() for uuid in self.directory.shards if uuid not in self.replica_sets.entries]
        if orphans:
            logger.warning("storage.orphans_found", extra={"facts": {"count": len(orphans), "first": orphans[0]}})

    def _stream_changed(self, name: str, stream: StreamDescription | None) -> None:
        """A stream that is being deleted gives up its copies as their entries go; one that appears may be led."""
        if stream is None or stream.status is StreamStatus.DELETING:
            self._places.pop(name, None)
            self.copies.stream_deleted(name)
        else:
            self._altered(stream)
            self.copies.stream_appeared(name, {shard.uuid for shard in stream.shards})
            self.coordination.stream_changed(name)

    # -- for copies ----------------------------------------------------------------------------------------

    def place(self, uuid: bytes, stream: str) -> tuple[StreamDescription, Shard] | None:
        found = self.catalog.streams.get(stream)
        if found is None:
            return None
        known = self._places.get(stream)
        if known is None or known[0] != found.map_version or uuid not in known[1]:
            known = self._places[stream] = found.map_version, {shard.uuid: shard for shard in found.shards}
        shard = known[1].get(uuid)
        return None if shard is None else (found, shard)

    def serve(self, server: ShardServer) -> None:
        uuid = server.shard.uuid
        self.shards[uuid] = server
        if server.stream_name != APPLICATIONS_STREAM:
            self.public[uuid] = server
        self.coordination.began(server)
        self.reshards.led(server)

    def withdraw(self, server: ShardServer) -> None:
        uuid = server.shard.uuid
        if self.shards.get(uuid) is server:
            del self.shards[uuid]
            self.public.pop(uuid, None)
        self.coordination.ended(server)

    # -- who is where --------------------------------------------------------------------------------------

    def missing(self, uuid: bytes) -> StreamkitError:
        copy = self.copies.copies.get(uuid)
        if copy is not None:
            return copy.not_leader()
        entry = self.replica_sets.entries.get(uuid)
        if entry is None:
            return super().missing(uuid)
        return NotLeader(
            f"node {self.copies.node} has no copy of the shard", try_="ask its leader", shard=uuid.hex(),
            epoch=entry.epoch, leader=entry.leader, address=self.copies.native_address(entry.leader),
        )  # fmt: skip

    def refusal(self, uuid: bytes, error: StreamkitError) -> StreamkitError:
        """A disk that failed is this node's trouble: another leads in a moment, and the producer asks that one."""
        return self.missing(uuid) if isinstance(error, DiskFailed) else error

    def coordinator(self) -> tuple[str, str]:
        """(node, native address) of whoever leads the applications' log; ("", "") when nobody is known to."""
        stream = self.catalog.streams.get(APPLICATIONS_STREAM)
        entry = self.replica_sets.entries.get(stream.shards[0].uuid) if stream is not None else None
        if entry is None or entry.leader in ("", self.copies.node):
            return "", ""
        return entry.leader, self.copies.native_address(entry.leader)

    # -- changes -------------------------------------------------------------------------------------------

    async def _create(self, name: str, config: StreamConfig) -> StreamDescription:
        """Nodes that have just started may not be known here yet: for a moment they are waited for."""
        deadline = asyncio.get_running_loop().time() + _NODES_SECONDS
        while True:
            try:
                return await super()._create(name, config)
            except CannotPlace:
                if name == APPLICATIONS_STREAM or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_LOOK_SECONDS)

    async def _settle(self, left: StreamDescription) -> None:
        """Another node may be at it: what is being made is waited for."""
        await (self._make(left) if left.status is StreamStatus.CREATING else self._drop(left))

    async def _give_up(self, stream: StreamDescription) -> None:
        """Leaders are at work, or come: it is not taken away again, and the controller ends what is left undone."""
        logger.info("stream.unfinished", extra={"facts": {"stream": stream.name}})

    async def _make(self, stream: StreamDescription) -> StreamDescription:
        """The stream and its replica sets are in the store: wait until every shard has a leader."""
        deadline = asyncio.get_running_loop().time() + _LEADERS_SECONDS
        waiting = [shard.uuid for shard in stream.shards]
        while waiting := [uuid for uuid in waiting if not self._is_led(uuid)]:
            if asyncio.get_running_loop().time() > deadline:
                raise TimedOut(
                    f"{len(waiting)} of {len(stream.shards)} shards of {stream.name} have no leader yet; it is made "
                    "as soon as they have", try_="streamkit cluster status", sent=True,
                    timeout_ms=int(_LEADERS_SECONDS * 1000),
                )  # fmt: skip
            await asyncio.sleep(_LOOK_SECONDS)
        found = self.stream(stream.name)                   # others may have ended it, or begun to delete it
        if found.status is StreamStatus.CREATING:
            found = await self.catalog.set_status(stream.name, StreamStatus.ACTIVE)
        return found

    def _is_led(self, uuid: bytes) -> bool:
        entry = self.replica_sets.entries.get(uuid)
        return entry is not None and entry.epoch > 0 and bool(entry.leader)

    async def _drop(self, stream: StreamDescription) -> None:
        """The catalog says DELETING; copies go when their entries have."""
        await self.catalog.forget(stream.name)
        self.counters.streams.pop(stream.name, None)

    @property
    def has_applications(self) -> bool:
        found = self.catalog.streams.get(APPLICATIONS_STREAM)
        return found is not None and found.status is StreamStatus.ACTIVE

    async def ensure_applications(self) -> None:
        """The coordinator's own stream is made once there are nodes enough for it."""
        found = self.catalog.streams.get(APPLICATIONS_STREAM)
        if found is None:
            await self._create(APPLICATIONS_STREAM, StreamConfig())
        elif found.status is StreamStatus.CREATING:
            await self._make(found)                        # whoever began may have come to an end

    # -- what shards hold ----------------------------------------------------------------------------------

    def shard(self, uuid: bytes) -> ShardServer:
        """For readers. A leader that has just been elected knows too little of what is committed to be asked."""
        served = super().shard(uuid)
        if not served.is_readable:
            raise NotLeader(
                f"node {self.copies.node} is taking over the shard", try_="try again in a moment",
                shard=uuid.hex(), epoch=served.epoch, leader="", address="",
            )
        return served

    def high_watermark(self, uuid: bytes) -> int:
        if (served := self.shards.get(uuid)) is not None:
            return served.high_watermark
        if (copy := self.copies.copies.get(uuid)) is not None:
            return copy.high_watermark
        return self._said(uuid).high_watermark

    def resolve(self, uuid: bytes, kind: str, value: int) -> int:
        if uuid in self.shards:
            return super().resolve(uuid, kind, value)
        said = self._resolved.get((uuid, kind, value))
        if said is not None:
            return said
        copy = self.copies.copies.get(uuid)
        log_start = copy.log.log_start if copy is not None else self._said(uuid).log_start
        match kind:
            case "trim_horizon":
                return log_start
            case "at_sequence":
                return max(log_start, value)
            case "after_sequence":
                return max(log_start, value + 1)
        raise self.missing(uuid)

    def append_time_of(self, uuid: bytes, sequence: int) -> int | None:
        if uuid in self.shards:
            return super().append_time_of(uuid, sequence)
        if (copy := self.copies.copies.get(uuid)) is not None:
            return copy.log.arrived_ms(sequence, copy.high_watermark)
        state = self._elsewhere.get(uuid)
        if state is None or sequence >= state.high_watermark:
            return None
        return state.last_append_ms

    def backlog(self, uuid: bytes, sequence: int) -> tuple[int, int]:
        if uuid in self.shards:
            return super().backlog(uuid, sequence)
        if (copy := self.copies.copies.get(uuid)) is not None:
            return copy.log.log_start, copy.log.bytes_after(sequence)
        state = self._said(uuid)
        kept = state.log_end - state.log_start
        left = min(max(0, state.log_end - sequence), kept)
        return state.log_start, state.stored_bytes * left // kept if kept else 0

    def _said(self, uuid: bytes) -> ShardState:
        try:
            return self._elsewhere[uuid]
        except KeyError:
            raise self.missing(uuid) from None

    async def states_of(self, name: str) -> tuple[ShardState, ...]:
        """What every shard holds, by its leader's word. Raises what keeps a leader from answering."""
        stream = self.stream(name)
        if stream.status is not StreamStatus.ACTIVE:
            raise StreamBusy(
                f'stream "{name}" is {stream.status.value}', try_="try again in a moment",
                stream=name, status=stream.status.value,
            )
        here = {shard.uuid: self.state(shard) for shard in stream.shards if shard.uuid in self.shards}
        others = await self.look_elsewhere([shard.uuid for shard in stream.shards if shard.uuid not in here])
        found = here | others
        for shard in stream.shards:
            if shard.uuid not in found:
                raise self.missing(shard.uuid)
        return tuple(found[shard.uuid] for shard in stream.shards)

    def state(self, shard: Shard) -> ShardState:
        return self._state(self.shards[shard.uuid], shard)

    async def look_elsewhere(self, uuids: list[bytes]) -> dict[bytes, ShardState]:
        """Ask the leaders of those shards; kept for high_watermark and append_time_of."""
        found: dict[bytes, ShardState] = {}
        for _ in range(_TRIES):
            asked = await self._ask({uuid: AskLeader(uuids=(uuid,)) for uuid in uuids if uuid not in found})
            found |= {uuid: said.states[0] for uuid, said in asked.items() if said.states[0] is not None}
            if len(found) == len(uuids):
                break
            await asyncio.sleep(_LOOK_SECONDS)
        self._elsewhere |= found
        return found

    async def catch_up(self) -> None:
        await self.catalog.look_at_all()

    async def prepare(self, message: JoinApplication) -> None:
        """Ask leaders elsewhere what the start of an application means in their shards; `resolve` then knows."""
        kind = "trim_horizon" if message.start_kind == "per_shard" else message.start_kind
        streams = [stream for name in message.streams if (stream := self.catalog.streams.get(name)) is not None]
        wanted = {
            shard.uuid: (shard.uuid, kind, message.start_value)
            for stream in streams for shard in stream.shards if shard.uuid not in self.shards
        }
        self._resolved.clear()
        for _ in range(_TRIES):
            asked = await self._ask({uuid: AskLeader(positions=(position,)) for uuid, position in wanted.items()})
            for uuid, said in asked.items():
                if said.sequences[0] is not None:
                    self._resolved[wanted.pop(uuid)] = said.sequences[0]
            if not wanted:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self, names: list[str]) -> None:
        """Ask for shards of which nothing lies here; a copy of our own knows nearly as much as the leader."""
        streams = [stream for name in names if (stream := self.catalog.streams.get(name)) is not None]
        copies = self.copies.copies
        far = [shard.uuid for stream in streams for shard in stream.shards if shard.uuid not in copies]
        if far:
            await self.look_elsewhere(far)

    async def _ask(self, asked: dict[bytes, AskLeader]) -> dict[bytes, LeaderSays]:
        """One message for each leader."""
        by_leader: dict[str, list[bytes]] = {}
        for uuid in asked:
            entry = self.replica_sets.entries.get(uuid)
            if entry is not None and entry.leader:
                by_leader.setdefault(entry.leader, []).append(uuid)
        found: dict[bytes, LeaderSays] = {}
        for node, uuids in by_leader.items():
            message = AskLeader(
                tuple(one for uuid in uuids for one in asked[uuid].uuids),
                tuple(one for uuid in uuids for one in asked[uuid].positions),
            )
            said = await self._ask_node(node, message)
            if said is not None:
                states, sequences = iter(said.states), iter(said.sequences)
                for uuid in uuids:
                    found[uuid] = LeaderSays(
                        tuple(next(states) for _ in asked[uuid].uuids),
                        tuple(next(sequences) for _ in asked[uuid].positions),
                    )
        return found

    async def _ask_node(self, node: str, message: AskLeader) -> LeaderSays | None:
        if node == self.copies.node:
            return await self.answer(message)
        try:
            said = await self.copies.peers.ask(node, message, _ASK_TIMEOUT_MS)
        except (ConnectionFailed, TimedOut):
            return None
        return said if isinstance(said, LeaderSays) else None

    async def answer(self, message: AskLeader) -> LeaderSays:
        """Another node asks what this one's shards hold."""
        sequences: list[int | None] = []
        for uuid, kind, value in message.positions:
            served = self.shards.get(uuid)
            if served is None or not served.is_established:
                sequences.append(None)
                continue
            if kind == "at_time":
                await served.log.warm_time(value)
            sequences.append(super().resolve(uuid, kind, value) if uuid in self.public else None)
        states = [
            self._state(served, served.shard) if (served := self.shards.get(uuid)) is not None else None
            for uuid in message.uuids
        ]
        return LeaderSays(tuple(states), tuple(sequences))
