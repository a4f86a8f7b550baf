"""Who answers what: frames from a link to shards, fetches, streams, producers and the coordinator.

Puts and fetches are dealt with at once, in the order in which they came. Everything else is rare and runs as a
task of its own; answers may overtake one another, the request number tells which is which.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamkit.broker.cluster_admin import NO_CLUSTER
from streamkit.broker.coordination import Coordination
from streamkit.broker.coordinator import Coordinator
from streamkit.broker.counters import Counters
from streamkit.broker.fetch import Fetches
from streamkit.broker.matching import Matcher
from streamkit.broker.producers import give_producer, open_producer
from streamkit.broker.reshard import Asked, Reshards
from streamkit.broker.shard_server import ShardServer
from streamkit.broker.streams import Streams
from streamkit.broker.traffic import WINDOW_MS, traffic_of
from streamkit.errors import InvalidRequest, NodeDraining, StreamkitError
from streamkit.metadata.notes import Notes
from streamkit.protocol import messages as m
from streamkit.protocol.connection import Received
from streamkit.protocol.conversion import altered, create_from_wire, failure_to_wire, hash_to_wire, stream_to_wire
from streamkit.protocol.frames import FetchFrame, Frame, PutFrame
from streamkit.runtime.interfaces import Clock, Executor

if TYPE_CHECKING:
    from streamkit.broker.link import Link

logger = logging.getLogger("streamkit.broker")

_LIST_COUNT_MAX = 10_000
_NOTES_BYTES_MAX = 2 * 1024 * 1024         # in one answer, and one note more
COORDINATOR_MESSAGES = (
    m.JoinApplication, m.Heartbeat, m.Checkpoint, m.ReleaseLeases, m.LeaveApplication, m.ListApplications,
    m.DescribeApplication, m.DeleteApplication, m.PauseLease, m.ResumeLeases, m.HoldApplication, m.SetPositions,
    m.CheckApplication, m.CommitTransaction, m.CommitOutputs, m.OutputsCarriedOut,
)  # fmt: skip


class Service:
    """reshards: set by the node before anybody is let in."""

    reshards: Reshards

    def __init__(
        self, *, streams: Streams, coordinator: Coordinator | Coordination, counters: Counters, clock: Clock, node: str,
        notes: Notes, executor: Executor, describe_node: Callable[[], m.NodeDescribed],
        on_application: Callable[[], None],
    ) -> None:
        """on_application: called when a worker joined; from then on the coordinator needs its ticks."""
        self.streams = streams
        self.coordinator = coordinator
        self.fetches = Fetches(streams, coordinator, Matcher(executor))
        self.draining = False
        self._counters = counters
        self._clock = clock
        self._notes = notes
        self._node = node
        self._describe_node = describe_node
        self._on_application = on_application
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[type, Callable[[Any, int], Awaitable[m.Message]]] = {
            m.CreateStream: self._create_stream,
            m.DescribeStream: self._describe_stream,
            m.ListStreams: self._list_streams,
            m.DeleteStream: self._delete_stream,
            m.AlterStream: self._alter_stream,
            m.DescribeShards: self._describe_shards,
            m.SplitShard: self._split_shard,
            m.MergeShards: self._merge_shards,
            m.ScaleStream: self._scale_stream,
            m.DescribeOperation: self._describe_operation,
            m.DescribeTraffic: self._describe_traffic,
            m.ResolvePosition: self._resolve_position,
            m.NewProducer: self._new_producer,
            m.OpenProducer: self._open_producer,
            m.CancelBatch: self._cancel_batch,
            m.DescribeNode: self._node_described,
            m.ReadNote: self._read_note,
            m.SwapNotes: self._swap_notes,
            m.ListNotes: self._list_notes,
            **dict.fromkeys(COORDINATOR_MESSAGES, coordinator.handle),
            m.JoinApplication: self._join,
            m.CommitOutputs: self._join,       # what is decided is watched over, without an application too
            **NO_CLUSTER,
        }

    def answer_cluster(self, answers: Mapping[type, Callable[[Any, int], Awaitable[m.Message]]]) -> None:
        """The node belongs to a cluster: see ClusterAdmin.answers."""
        self._answers.update(answers)

    def handle(self, link: Link, frames: Sequence[Frame | Received]) -> None:
        """Everything that one receive completed, in order."""
        counters, shards = self._counters, self.streams.public
        now_s, now_ms = self._loop.time(), self._clock.now_ms()
        immediate: set[ShardServer] | None = None
        for frame in frames:
            if type(frame) is PutFrame:
                counters.puts += 1
                shard = shards.get(frame.shard)
                try:
                    if shard is None or self.draining:
                        raise self._cannot_put(frame.shard)
                    shard.put(link, frame, now_ms, now_s)
                except StreamkitError as error:
                    link.refuse(frame.request_id, "put", self.streams.refusal(frame.shard, error))
                    if shard is not None:
                        shard.counters.put_failures[error.code] += 1
                    continue
                if shard.immediate:
                    immediate = immediate or set()
                    immediate.add(shard)
            elif type(frame) is FetchFrame:
                counters.fetches += 1
                self.fetches.begin(link, frame)
            else:
                assert type(frame) is Received, "a broker receives puts, fetches and messages"
                self._begin(link, frame)
        if immediate is not None:
            for shard in immediate:
                for other in shard.progressed() or ():
                    if other is not link:
                        other.flush_soon()
            link.keep_up()

    def _cannot_put(self, uuid: bytes) -> StreamkitError:
        return self._is_draining() if self.draining else self.streams.missing(uuid)

    def _is_draining(self) -> NodeDraining:
        return NodeDraining(f"node {self._node} is stopping", try_="try again when it is back", node=self._node)

    def _begin(self, link: Link, received: Received) -> None:
        if isinstance(received.message, m.Goodbye):
            return                                     # answers still leave; the peer closes when it has them
        operation = type(received.message).__name__
        self._counters.messages[operation] += 1
        if isinstance(received.message, m.FetchMatching):
            self._counters.fetches += 1
            self.fetches.begin_matching(link, received.request_id, received.message)
            return
        if isinstance(received.message, m.Subscribe):
            self._counters.fetches += 1
            self.fetches.subscribe(link, received.request_id, received.message)
            return
        if isinstance(received.message, m.GiveCredit):
            self.fetches.give_credit(link, received.request_id, received.message.bytes)
            return
        if self.draining and isinstance(received.message, m.JoinApplication | m.Heartbeat):
            link.refuse(received.request_id, operation, self._is_draining())
            return
        link.requests += 1
        task = self._loop.create_task(self._answer(link, received, operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, link: Link, received: Received, operation: str) -> None:
        try:
            answer = await self._answers[type(received.message)](received.message, link.number)
            link.answer(received.request_id, answer)
        except StreamkitError as error:
            link.refuse(received.request_id, operation, error)
        except Exception as error:
            logger.exception("request.failed", extra={"facts": {"operation": operation}})
            link.refuse(received.request_id, operation, error)
        finally:
            link.requests -= 1
        link.balance()
        link.flush_soon()

    def forget(self, link: Link) -> None:
        """Its connection is gone."""
        self.fetches.forget(link)
        self.coordinator.connection_lost(link.number)

    async def drain(self) -> None:
        """Nothing new is taken; what is under way is finished, and whoever waits for news is answered now."""
        self.draining = True
        self.fetches.drain()
        try:
            await self.coordinator.close()
        except StreamkitError as error:
            logger.warning("coordinator.unwritten", extra={"facts": {"error": str(error)}})

    @property
    def under_way(self) -> int:
        """Requests that are not answered yet."""
        return len(self._tasks) + sum(shard.waiting for shard in self.streams.shards.values())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.fetches.close()

    # -- streams -------------------------------------------------------------------------------------------

    async def _create_stream(self, message: m.CreateStream, _: int) -> m.StreamDescribed:
        try:
            config = create_from_wire(message)
        except ValueError as error:
            raise InvalidRequest(
                f"{message.durability[:40]!r} is not a durability", try_='use "fsync", "os" or "leader"',
                field="durability", value=message.durability[:40],
            ) from error
        return m.StreamDescribed(stream_to_wire(await self.streams.create(message.name, config)))

    async def _describe_stream(self, message: m.DescribeStream, _: int) -> m.StreamDescribed:
        return m.StreamDescribed(stream_to_wire(await self.streams.find(message.name)))

    async def _list_streams(self, message: m.ListStreams, _: int) -> m.StreamsListed:
        count_max = max(1, min(message.count_max, _LIST_COUNT_MAX))
        names = [name for name in self.streams.catalog.names() if name > message.after]
        found = tuple(
            stream_to_wire(self.streams.catalog.streams[name], with_shards=False) for name in names[:count_max]
        )
        return m.StreamsListed(found, len(names) > count_max)

    async def _delete_stream(self, message: m.DeleteStream, _: int) -> m.Done:
        await self.streams.delete(message.name)
        return m.Done()

    async def _alter_stream(self, message: m.AlterStream, _: int) -> m.StreamDescribed:
        stream = await self.streams.alter(message.name, lambda config: altered(config, message))
        return m.StreamDescribed(stream_to_wire(stream))

    async def _split_shard(self, message: m.SplitShard, _: int) -> m.StreamDescribed:
        at = None if message.at is None else int.from_bytes(message.at, "big")
        return _asked(await self.reshards.split(message.name, message.shard, at, wait=message.wait))

    async def _merge_shards(self, message: m.MergeShards, _: int) -> m.StreamDescribed:
        return _asked(await self.reshards.merge(message.name, message.shards, wait=message.wait))

    async def _scale_stream(self, message: m.ScaleStream, _: int) -> m.StreamDescribed:
        return _asked(await self.reshards.scale(message.name, message.shards, wait=message.wait))

    async def _describe_operation(self, message: m.DescribeOperation, _: int) -> m.OperationDescribed:
        found = await self.reshards.progress(message.stream, message.operation, message.wait_ms)
        failure = None if found.error is None else failure_to_wire(found.error)
        return m.OperationDescribed(found.status, found.done, found.total, failure)

    async def _describe_traffic(self, message: m.DescribeTraffic, _: int) -> m.TrafficDescribed:
        found = await traffic_of(self.streams.shard(message.shard), self._clock.now_ms())
        at = None if found.at is None else hash_to_wire(found.at)
        return m.TrafficDescribed(at, found.records, WINDOW_MS, found.below, found.key, found.key_share)

    async def _describe_shards(self, message: m.DescribeShards, _: int) -> m.ShardsDescribed:
        return m.ShardsDescribed(await self.streams.states_of(message.name))

    async def _resolve_position(self, message: m.ResolvePosition, _: int) -> m.PositionResolved:
        shard = self.streams.shard(message.shard)
        if message.kind == "at_time":
            await shard.log.warm_time(message.value)
        sequence = self.streams.resolve(message.shard, message.kind, message.value)
        return m.PositionResolved(sequence, shard.log.log_start, shard.high_watermark)

    async def _new_producer(self, message: m.NewProducer, _: int) -> m.ProducerGiven:
        return await give_producer(self.streams.catalog, message)

    async def _cancel_batch(self, message: m.CancelBatch, _: int) -> m.BatchSettled:
        shard = self.streams.public.get(message.shard)
        if shard is None or self.draining:
            raise self._cannot_put(message.shard)
        try:
            return await shard.cancel(message, self._clock.now_ms())
        except StreamkitError as error:
            raise self.streams.refusal(message.shard, error) from error

    async def _open_producer(self, message: m.OpenProducer, _: int) -> m.ProducerOpened:
        if self.draining:
            raise self._is_draining()
        shard = self.streams.public.get(message.shard)
        if shard is None:
            raise self.streams.missing(message.shard)
        try:
            return await open_producer(self.streams.catalog, shard, message, self._clock.now_ms())
        except StreamkitError as error:
            raise self.streams.refusal(message.shard, error) from error

    async def _join(self, message: m.JoinApplication | m.CommitOutputs, connection: int) -> m.Message:
        answer = await self.coordinator.handle(message, connection)
        self._on_application()
        return answer

    async def _node_described(self, _: m.DescribeNode, __: int) -> m.NodeDescribed:
        return self._describe_node()

    # -- notes ---------------------------------------------------------------------------------------------

    async def _read_note(self, message: m.ReadNote, _: int) -> m.NoteRead:
        return m.NoteRead(*await self._notes.read(message.key))

    async def _swap_notes(self, message: m.SwapNotes, _: int) -> m.NotesSwapped:
        swaps = [(swap.key, swap.revision, swap.value) for swap in message.swaps]
        return m.NotesSwapped(await self._notes.swap(swaps))

    async def _list_notes(self, message: m.ListNotes, _: int) -> m.NotesListed:
        count_max = max(1, min(message.count_max, _LIST_COUNT_MAX))
        notes, more = await self._notes.page(message.prefix, message.after, count_max, _NOTES_BYTES_MAX)
        return m.NotesListed(tuple(m.NoteInfo(*note) for note in notes), more)


def _asked(asked: Asked) -> m.StreamDescribed:
    return m.StreamDescribed(stream_to_wire(asked.stream), asked.operation)
