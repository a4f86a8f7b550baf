"""AsyncClient: one method for each thing that a broker can be asked.

Puts and fetches go to the node that leads the shard, what concerns applications to the node that coordinates them,
everything else to any node. A refusal that names the right node is followed where nothing was done by asking.

The sync class, `sync.Client`, is the async one on the process's background event loop, method for method.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, overload

from streamkit.client.applications import ResetPlan, export_positions, plan_import, plan_reset
from streamkit.client.config import ClientConfig
from streamkit.client.connection import OnDone, settle
from streamkit.client.fates import find_fate
from streamkit.client.lag import Lag, lag_of
from streamkit.client.operations import AsyncOperation, Begun, SplitAt, attach, begin, begin_split
from streamkit.client.pool import Connector, Link, Pool
from streamkit.client.routing import Routes
from streamkit.client.url import parse_url, resolve_addresses, warn_if_readable
from streamkit.client.why import Facts
from streamkit.errors import (
    ConnectionFailed,
    InvalidConfig,
    InvalidRequest,
    NotLeader,
    ProtocolMismatch,
    StreamBusy,
    StreamkitError,
    TimedOut,
    Unavailable,
)
from streamkit.model import limits
from streamkit.model.fate import BatchName, Fate, parse_put_token
from streamkit.model.note import Note, check_note_key, check_note_prefix, check_note_swaps
from streamkit.model.position import Position, parse_position
from streamkit.model.shard import Shard, shard_ordinal
from streamkit.model.stream import UNCHANGED, Durability, StreamConfig, StreamDescription, Unchanged, check_stream_name
from streamkit.protocol import messages as m
from streamkit.protocol.conversion import (
    alter_to_wire,
    create_to_wire,
    position_to_wire,
    stream_from_wire,
)
from streamkit.protocol.frames import FETCH_BYTES_MAX, Fetched, PutReceipt
from streamkit.runtime import environment
from streamkit.runtime.interfaces import Buffer, Runtime
from streamkit.runtime.real import RealNetwork, real_runtime
from streamkit.runtime.tasks import wait_out

_log = logging.getLogger("streamkit.client")

A = TypeVar("A", bound=m.Message)

# Asking these twice changes nothing, so a connection that breaks under one is made again once, silently.
_REPEATABLE = (
    m.DescribeStream, m.ListStreams, m.DescribeShards, m.ResolvePosition, m.ListApplications, m.DescribeApplication,
    m.DescribeNode, m.ReadNote, m.ListNotes, m.CheckApplication, m.CancelBatch,
    m.DescribeOperation, m.DescribeTraffic,
)  # fmt: skip
_COORDINATED = (
    m.JoinApplication, m.Heartbeat, m.Checkpoint, m.ReleaseLeases, m.LeaveApplication, m.ListApplications,
    m.DescribeApplication, m.DeleteApplication, m.PauseLease, m.ResumeLeases, m.HoldApplication, m.SetPositions,
    m.CheckApplication, m.CommitTransaction, m.CommitOutputs, m.OutputsCarriedOut,
)  # fmt: skip
_DECISIONS = (m.CommitTransaction, m.CommitOutputs, m.OutputsCarriedOut)
_FOLLOWS_MAX = 3                           # nodes in a row that name another one


class AsyncClient:
    """A broker, asked from coroutines of one event loop. Connects with the first request.

    url: streamkit://host:port, host:port or unix:/path, several nodes with commas between them; see url.py for what is
    taken when it is None. More nodes are learned from the first that answers. Or a connector: a coroutine function that
    takes a protocol factory, for a node in the same process.
    """

    def __init__(
        self, url: str | Connector | None = None, runtime: Runtime | None = None, *, config: ClientConfig | None = None
    ) -> None:
        self.config = config or ClientConfig()
        self.runtime = runtime or real_runtime()
        connector = None if url is None or isinstance(url, str) else url
        addresses = ("",) if connector else resolve_addresses(url if isinstance(url, str) else None)
        self.address = addresses[0]
        if isinstance(self.runtime.network, RealNetwork):
            for address in addresses:
                warn_if_readable(address)
        name = f"streamkit python/{environment.python_version()}"
        self._pool = Pool(
            addresses, connector, name, self.config, self.runtime, self._note_refusal, self._note_lost
        )
        self._coordinator: Link | None = None          # who coordinates applications, when another node said so
        self._routes = Routes(self._ask_stream)
        self._link_by_shard: dict[bytes, Link] = {}
        self._operations: set[AsyncOperation] = set()  # that are under way

    async def connect(self) -> str:
        """Connect now, not with the first request; the broker's name.

        Raises ConnectionFailed when no node answers, ProtocolMismatch.
        """
        return (await self._pool.ready()).node

    async def close(self) -> None:
        """Say goodbye. What is under way fails with Closed. Safe to call twice."""
        await wait_out([operation.unfollow() for operation in list(self._operations)])
        await self._pool.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- streams -----------------------------------------------------------------------------------------

    async def create_stream(
        self,
        name: str,
        config: StreamConfig | None = None,
        *,
        shards: int = 1,
        retention_hours: int = limits.RETENTION_HOURS_DEFAULT,
        retention_bytes: int | None = None,
        durability: Durability | str = Durability.FSYNC,
        record_bytes_max: int = limits.RECORD_BYTES_MAX_DEFAULT,
        codec: str = "auto",
    ) -> StreamDescription:
        """Settings come as one StreamConfig or one by one. Raises StreamExists, InvalidRequest, LimitReached."""
        config = config or StreamConfig(
            shards=shards,
            retention_hours=retention_hours,
            retention_bytes=retention_bytes,
            durability=_durability(durability),
            record_bytes_max=record_bytes_max,
            codec=codec,
        )
        check_stream_name(name, internal=True)
        answer = await self._ask(create_to_wire(name, config), m.StreamDescribed)
        return self._routes.remember(stream_from_wire(answer.stream))

    async def describe_stream(self, name: str) -> StreamDescription:
        """Asks the brokers, also for the shards' rates (0.0 while a leader is sought). Raises StreamNotFound."""
        stream = await self._routes.stream(name, refresh=True)
        try:
            states = {state.ordinal: state for state in await self.describe_shards(name)}
        except (Unavailable, StreamBusy, TimedOut):        # what is asked for first of all is there
            return stream
        return replace(stream, shards=tuple(_rated(shard, states.get(shard.ordinal)) for shard in stream.shards))

    async def stream(self, name: str, refresh: bool = False) -> StreamDescription:
        """What is remembered of a stream; asks when nothing is, or when `refresh`. Raises StreamNotFound."""
        return await self._routes.stream(name, refresh=refresh)

    async def list_streams(self) -> list[StreamDescription]:
        """All streams by name, without their shards."""
        found: list[StreamDescription] = []
        more = True
        while more:
            answer = await self._ask(m.ListStreams(after=found[-1].name if found else ""), m.StreamsListed)
            found += map(stream_from_wire, answer.streams)
            more = answer.more and bool(answer.streams)
        return found

    async def delete_stream(self, name: str) -> None:
        """The stream and all its records. Raises StreamNotFound."""
        self._routes.forget(name)
        await self._ask(m.DeleteStream(name), m.Done)

    async def alter_stream(
        self,
        name: str,
        *,
        retention_hours: int | None = None,
        retention_bytes: int | Unchanged | None = UNCHANGED,
        record_bytes_max: int | None = None,
    ) -> StreamDescription:
        """Change settings of a stream; what is not named stays. retention_bytes None: no bound by size.

        The stream afterwards. Nodes that lead its shards take it up at once, or as soon as they hear of it; producers
        that have begun keep the record_bytes_max they began with. Raises StreamNotFound, InvalidRequest, StreamBusy.
        """
        message = alter_to_wire(name, retention_hours, retention_bytes, record_bytes_max)
        return self._routes.remember(stream_from_wire((await self._ask(message, m.StreamDescribed)).stream))

    def split_shard(self, name: str, shard: str | int, at: SplitAt = "middle") -> AsyncOperation:
        """Close a shard (its id or ordinal) and give its keys to two others; await it for the stream afterwards.

        at: first hash key of the second; "middle" of the range; or "traffic": where the bytes of the last ten minutes
        part into halves, the middle when there were too few, and InvalidRequest when they nearly all have one key.
        Readers finish the parent before its children; key order is kept. A change that is under way already is waited
        for. Raises ShardNotFound, ShardClosed, InvalidRequest, StreamBusy.
        """
        return self._operate(f"the split of {name}", begin_split(self, name, shard, at))

    def merge_shards(self, name: str, *shards: str | int) -> AsyncOperation:
        """Close neighbouring shards (ids or ordinals) and give their keys to one other; as `split_shard`."""
        message = m.MergeShards(name, tuple(map(shard_ordinal, shards)), wait=False)
        return self._operate(f"the merge in {name}", begin(self, name, message))

    def scale_stream(self, name: str, shards: int) -> AsyncOperation:
        """Split and merge until `shards` shards of nearly equal ranges are open; as `split_shard`."""
        return self._operate(f"the scaling of {name}", begin(self, name, m.ScaleStream(name, shards, wait=False)))

    def operation(self, id: str) -> AsyncOperation:
        """Follow again what another client began, perhaps. Raises InvalidRequest, NotFound, StreamNotFound."""
        return self._operate(f"the operation {id[:80]}", attach(id))

    def _operate(self, what: str, begin: Coroutine[Any, Any, Begun]) -> AsyncOperation:
        operation = AsyncOperation(self, what, begin)
        self._operations.add(operation)
        operation.when_ended(self._operations.discard)
        return operation

    def remember(self, stream: StreamDescription) -> StreamDescription:
        """What a broker just said of a stream, with the newest leaders known."""
        return self._routes.remember(stream)

    async def describe_traffic(self, shard: Shard) -> m.TrafficDescribed:
        """Where a split would halve what the shard took lately. Raises InvalidRequest (an earlier version's broker)."""
        connection = await self._link(shard).ready()
        if "traffic" not in connection.features:
            raise InvalidRequest(
                "the broker is of an earlier version, which cannot tell where the traffic parts",
                try_='split at="middle", or upgrade the nodes', field="at", value="traffic",
            )
        return await self._ask_leader(shard, m.DescribeTraffic(shard.uuid), m.TrafficDescribed)

    async def describe_shards(self, name: str) -> tuple[m.ShardState, ...]:
        """How much each shard holds, in ordinal order. Raises StreamNotFound."""
        return (await self._ask(m.DescribeShards(name), m.ShardsDescribed)).shards

    # ---- applications ------------------------------------------------------------------------------------

    async def describe_application(self, name: str) -> m.ApplicationDescribed:
        """Its workers and the state of each lease. Raises ApplicationNotFound."""
        return await self._ask(m.DescribeApplication(name), m.ApplicationDescribed)

    async def reset_application(
        self, name: str, to: str | datetime | Position, *, shards: Sequence[str] = (), stream: str | None = None,
        dry_run: bool = False,
    ) -> ResetPlan:
        """Go on at that position, in every shard or in those named; dry_run: only say what would come again.

        Running workers are fenced and go on there by themselves; what a processor stored with its positions is put
        aside. A position before a split is one in the parents: they are read first. Raises ApplicationNotFound,
        InvalidPosition, InvalidRequest.
        """
        plan = await plan_reset(self, await self.describe_application(name), to, shards, stream)
        return plan if dry_run else await self._carry_out(plan)

    async def undo_reset(self, name: str) -> None:
        """Back to the positions before the last reset, skip or import, with what was stored with them.

        Within seven days; once more is back again. Raises ApplicationNotFound, Conflict.
        """
        await self._ask(m.SetPositions(name, undo=True), m.Done)

    async def export_positions(self, name: str) -> dict[str, Any]:
        """Where the application stands, as a document for JSON. Raises ApplicationNotFound."""
        return await export_positions(self, await self.describe_application(name))

    async def import_positions(self, name: str, document: Mapping[str, Any], *, dry_run: bool = False) -> ResetPlan:
        """Go on where `export_positions` says. Raises ApplicationNotFound, InvalidPosition, InvalidRequest."""
        plan = await plan_import(self, await self.describe_application(name), document)
        return plan if dry_run else await self._carry_out(plan)

    async def _carry_out(self, plan: ResetPlan) -> ResetPlan:
        await self._ask(m.SetPositions(plan.application, plan.positions()), m.Done)
        return plan

    async def pause_application(self, name: str, reason: str = "") -> None:
        """Workers finish what is in hand and wait. Raises ApplicationNotFound."""
        await self._ask(m.HoldApplication(name, reason), m.Done)

    async def resume_application(self, name: str) -> None:
        """What was paused, by `pause_application` or by a failure policy, goes on. Raises ApplicationNotFound."""
        await self._ask(m.ResumeLeases(name), m.Done)

    async def delete_application(self, name: str) -> None:
        """Forget its positions; records stay. Raises ApplicationNotFound, Conflict while a worker of it runs."""
        await self._ask(m.DeleteApplication(name), m.Done)

    async def check_application(self, name: str) -> tuple[str, ...]:
        """Promises of the leases that do not hold, a line each; none as a rule. Raises ApplicationNotFound."""
        return (await self._ask(m.CheckApplication(name), m.ApplicationChecked)).problems

    # ---- positions, producers, node ----------------------------------------------------------------------

    async def resolve_position(self, shard: Shard, position: str | datetime | Position) -> m.PositionResolved:
        """The first sequence to read. Raises InvalidPosition, ShardNotFound, NotLeader while a leader is sought."""
        kind, value = position_to_wire(parse_position(position))
        return await self._ask_leader(shard, m.ResolvePosition(shard.uuid, kind, value), m.PositionResolved)

    async def _ask_leader(
        self, shard: Shard, message: m.Message, expected: type[A], timeout_ms: int | None = None
    ) -> A:
        for last in (*[False] * _FOLLOWS_MAX, True):
            try:
                return _expect(await self._call_at(self._link(shard), message, timeout_ms), expected)
            except NotLeader as error:
                self._note_refusal(shard.uuid, error)
                if last or not error.facts.get("address"):
                    raise
        raise AssertionError("the last try returns or raises")

    async def cancel_batch(
        self, shard: Shard, batch: BatchName, *, age_ms: int = 0, timeout_ms: int | None = None
    ) -> m.BatchSettled:
        """Use a batch's numbers up, so that it is never stored, unless it is: then where. See protocol.messages.

        Raises NotLeader while a leader is sought, SequenceGap, ConnectionFailed, TimedOut, and what refuses producers.
        """
        timeout_ms = self.config.request_timeout_ms if timeout_ms is None else timeout_ms
        message = m.CancelBatch(shard.uuid, *batch, age_ms)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._ask_leader(shard, message, m.BatchSettled, timeout_ms)
        except TimeoutError:
            raise TimedOut(f"{shard.id} did not answer within {timeout_ms} ms", try_="ask again", sent=True,
                           timeout_ms=timeout_ms) from None  # fmt: skip

    async def resolve(self, token: str) -> Fate:
        """What became of a record whose put failed with OutcomeUnknown; token: of the error's facts.

        Asking settles it: a record that was not stored by then never will be. Raises InvalidRequest (no such token),
        ConnectionFailed, TimedOut, NotLeader while a leader is sought.
        """
        return await find_fate(self, parse_put_token(token))

    async def find_leader(self, shard: Shard, stream: str = "") -> None:
        """Ask a node that answers where the shard is led now; all who ask at the same time share one request.

        stream: the shard's, for one that was not found in a description.

        For whoever goes on trying: raises StreamNotFound, ConnectionFailed and what else asking raises.
        """
        if name := self._routes.name_of(shard.uuid) or stream:
            await self._routes.stream(name, refresh=True)

    async def new_producer(self, name: str = "", instance: bytes = b"", *, renew: bool = False) -> m.ProducerGiven:
        """An identity for idempotent puts; a name raises its epoch and fences elder holders of the name.

        instance: 16 random bytes, whose the name is from then on. renew: raise the epoch only if it still is; else
        ProducerFenced. Elder holders are kept out of a shard by `open_producer`.
        """
        return await self._ask(m.NewProducer(name, instance, renew), m.ProducerGiven)

    async def open_producer(
        self, shard: Shard, name: str, instance: bytes, given: m.ProducerGiven, *, timeout_ms: int | None = None
    ) -> m.ProducerOpened:
        """Begin with a shard as the newest holder of a name: nothing of elder ones is stored there afterwards.

        Raises ProducerFenced (somebody opened the name later), ShardNotFound, NotLeader while a leader is sought.
        """
        message = m.OpenProducer(shard.uuid, name, instance, given.producer_id, given.producer_epoch)
        return await self._ask_leader(shard, message, m.ProducerOpened, timeout_ms)

    async def lag(self, application: str) -> Lag:
        """How far the application is behind; needs no running worker. Raises ApplicationNotFound."""
        return lag_of(await self._ask(m.DescribeApplication(application), m.ApplicationDescribed))

    async def facts_about(self, application: str) -> Facts:
        """What `streamkit.client.why.explain` looks at. Raises ApplicationNotFound."""
        described = await self._ask(m.DescribeApplication(application), m.ApplicationDescribed)
        return Facts(described, (await self.describe_node()).put_ms)

    async def list_applications(self) -> tuple[str, ...]:
        """Every application that ever joined and was not deleted."""
        return (await self._ask(m.ListApplications(), m.ApplicationsListed)).names

    async def describe_node(self) -> m.NodeDescribed:
        return await self._ask(m.DescribeNode(), m.NodeDescribed)

    # ---- notes -------------------------------------------------------------------------------------------

    async def read_note(self, key: str) -> tuple[bytes | None, int]:
        """A small document kept beside the streams, and its revision; (None, 0) when there is none."""
        answer = await self._ask(m.ReadNote(check_note_key(key)), m.NoteRead)
        return answer.value, answer.revision

    async def swap_notes(self, swaps: Sequence[tuple[str, int, bytes | None]]) -> int | None:
        """Change notes together, each (key, its revision, new value): all of them, or none.

        revision: 0 when it must not exist. value: None deletes it. Returns their new revision, or None when one of the
        revisions did not match: read again, decide again. Raises InvalidRequest; ConnectionFailed, TimedOut and
        StoreUnavailable leave it open whether the change was made, or will be: read before acting.
        """
        check_note_swaps(swaps)
        message = m.SwapNotes(tuple(m.NoteSwap(*swap) for swap in swaps))
        return (await self._ask(message, m.NotesSwapped)).revision

    async def list_notes(self, prefix: str, *, after: str = "", count_max: int = 1000) -> list[Note]:
        """The first notes whose keys begin with `prefix` and follow `after`, as (key, value, revision) in key order.

        Fewer than count_max: there are no more. Each is as it was at some moment of the call, not all at the same one.
        """
        check_note_prefix(prefix)
        check_note_prefix(after, "after")
        found: list[Note] = []
        more = True
        while more and len(found) < count_max:
            answer = await self._ask(
                m.ListNotes(prefix, found[-1].key if found else after, count_max - len(found)), m.NotesListed
            )
            found += (Note(note.key, note.value, note.revision) for note in answer.notes)
            more = answer.more and bool(answer.notes)
        return found

    # ---- records -----------------------------------------------------------------------------------------

    @overload
    def put_batch(
        self, shard: Shard, batch: Buffer, on_done: None = None, timeout_ms: int | None = None
    ) -> asyncio.Future[PutReceipt]: ...
    @overload
    def put_batch(self, shard: Shard, batch: Buffer, on_done: OnDone, timeout_ms: int | None = None) -> None: ...

    def put_batch(
        self, shard: Shard, batch: Buffer, on_done: OnDone | None = None, timeout_ms: int | None = None
    ) -> asyncio.Future[PutReceipt] | None:
        """Send a sealed batch. Not a coroutine: batches of one turn of the loop leave together, each shard's in order.

        on_done: called once from the loop with PutReceipt or StreamkitError, instead of a future. `batch` must
        not change until then. Never retried here: ConnectionFailed and TimedOut with sent=True mean that its fate
        is unknown.
        """
        timeout_ms = self.config.request_timeout_ms if timeout_ms is None else timeout_ms
        link = self._link_by_shard.get(shard.uuid) or self._link(shard)
        if on_done is not None:
            link.put(shard.uuid, batch, timeout_ms, on_done)
            return None
        future: asyncio.Future[PutReceipt] = asyncio.get_running_loop().create_future()
        link.put(shard.uuid, batch, timeout_ms, partial(settle, future))
        return future

    async def wait_writable(self, shard: Shard) -> None:
        """Until the connection to the shard's leader takes more bytes; returns at once when there is none."""
        connection = self._link(shard).connection
        if connection is not None:
            await connection.wait_writable()

    async def fetch(
        self,
        shard: Shard,
        start: int,
        *,
        bytes_max: int = 4 << 20,
        wait_ms: int = 500,
        application: str = "",
        session: int = 0,
        lease_epoch: int = 0,
        where: str | None = None,
        codec: str = "auto",
    ) -> Fetched:
        """Whole batches that hold sequence `start` and after, below the high watermark; empty after wait_ms.

        The first batch may begin before `start`. where: a condition; batches in which nothing matches may be left out
        (an earlier version's broker sends them), `next_sequence` is past them. codec: how it reads payloads, by name.
        Raises SequenceTrimmed, ShardNotFound, LeaseLost, ConnectionFailed, InvalidQuery.
        """
        for last in (*[False] * _FOLLOWS_MAX, True):
            connection = await self._link(shard).ready()
            try:
                if where is not None and "where" in connection.features:
                    return await connection.fetch_matching(m.FetchMatching(
                        shard.uuid, start, min(bytes_max, FETCH_BYTES_MAX), wait_ms, where, codec, application, session,
                        lease_epoch,
                    ))  # fmt: skip
                return await connection.fetch(
                    shard.uuid, start, min(bytes_max, FETCH_BYTES_MAX), wait_ms, lease_epoch, session, application
                )
            except NotLeader as error:     # noted when it came in
                if last or not error.facts.get("address"):
                    raise
        raise AssertionError("the last try returns or raises")

    async def subscribe(
        self, shard: Shard, start: int, on_push: Callable[[Any], None], *, credit_bytes: int, application: str = "",
        session: int = 0, lease_epoch: int = 0, where: str | None = None, codec: str = "auto",
    ) -> Callable[[int], None] | None:
        """Batches from `start` on as they are committed: on_push(Fetched) each time, then on_push(error) once.

        What is returned takes more credit, in bytes, and 0 to end it. None: the broker does not push. where, codec: as
        for fetch. Raises ConnectionFailed; everything else comes as the error.
        """
        connection = await self._link(shard).ready()
        if "push" not in connection.features:
            return None
        number = connection.subscribe(
            m.Subscribe(shard.uuid, start, credit_bytes, where or "", codec, application, session, lease_epoch), on_push
        )
        return lambda byte_count: connection.give_credit(number, byte_count)

    # ---- everything else ---------------------------------------------------------------------------------

    async def call(self, message: m.Message, *, timeout_ms: int | None = None) -> m.Message:
        """The broker's answer to any request of protocol.messages. Raises what the broker's Failure names."""
        if not isinstance(message, _COORDINATED):
            return await self._call_at(self._pool, message, timeout_ms)
        for last in (*[False] * _FOLLOWS_MAX, True):
            try:
                return await self._call_at(self._coordinator or self._pool, message, timeout_ms)
            except NotLeader as error:     # refused before anything was done
                self._coordinator = self._named(error)
                if last or self._coordinator is None:
                    raise
            except ConnectionFailed:
                self._coordinator = None
                raise
        raise AssertionError("the last try returns or raises")

    async def _call_at(self, to: Link | Pool, message: m.Message, timeout_ms: int | None = None) -> m.Message:
        timeout_ms = self.config.request_timeout_ms if timeout_ms is None else timeout_ms
        connection = await to.ready()
        if isinstance(message, _DECISIONS) and "transactions" not in connection.features:
            raise ProtocolMismatch("this broker knows no transactions", try_="upgrade it", reason="feature")
        try:
            return await connection.call(message, timeout_ms)
        except ConnectionFailed:
            if not isinstance(message, _REPEATABLE):
                raise
        return await (await to.ready()).call(message, timeout_ms)

    def _named(self, error: NotLeader) -> Link | None:
        # The node that a refusal names; an address that makes no sense is none.
        leader, address = str(error.facts.get("leader") or ""), str(error.facts.get("address") or "")
        try:
            return self._route(leader, address) if address else None
        except InvalidConfig:
            return None

    async def _ask(self, message: m.Message, expected: type[A]) -> A:
        return _expect(await self.call(message), expected)

    async def _ask_stream(self, name: str) -> StreamDescription:
        found = stream_from_wire((await self._ask(m.DescribeStream(name), m.StreamDescribed)).stream)
        for shard in found.shards:         # leaders may have moved; links are found anew from the description
            used = self._link_by_shard.pop(shard.uuid, None)
            if used is not None and not used.usable:
                newest = self._routes.newest(shard)
                if self._route(newest.leader, newest.address) is not used:
                    used.give_back(shard.uuid)     # what waits for a node that does not answer need not
        return found

    def _link(self, shard: Shard) -> Link:
        newest = self._routes.shard(shard)
        link = self._route(newest.leader, newest.address)
        if self._pool.first.connection is not None:    # before that names are not known, and the choice may change
            self._link_by_shard[shard.uuid] = link
        return link

    def _route(self, leader: str, address: str) -> Link:
        first = self._pool.first
        if not address or address == first.address or (leader and leader == first.node):
            return first
        return (self._pool.link_to(leader) if leader else None) or self._pool.link(parse_url(address))

    def _note_refusal(self, shard: bytes, error: StreamkitError) -> None:
        if self._routes.note(shard, error):
            self._link_by_shard.pop(shard, None)
            _log.info("route.stale shard=%s code=%s", shard.hex(), error.code)

    def _note_lost(self, link: Link) -> None:
        # Whatever was led there is led elsewhere soon, or there again.
        for shard in [uuid for uuid, used in self._link_by_shard.items() if used is link]:
            del self._link_by_shard[shard]
            self._routes.doubt(shard)


def _rated(shard: Shard, state: m.ShardState | None) -> Shard:
    if state is None or shard.closed_ms is not None:       # what it took before it was closed, its children take
        return shard
    return replace(shard, put_records_rate=state.put_records_rate, put_bytes_rate=state.put_bytes_rate)


def _durability(name: str) -> Durability:
    try:
        return Durability(name)
    except ValueError:
        raise InvalidRequest(
            f"durability must be one of {', '.join(Durability)}, got {name!r}",
            try_='use "fsync" unless losing the last records at a power cut is fine',
            field="durability",
            value=name,
        ) from None


def _expect(answer: m.Message, expected: type[A]) -> A:
    if not isinstance(answer, expected):
        raise ProtocolMismatch(
            f"the broker answers with {type(answer).__name__} where {expected.__name__} belongs", reason="answer"
        )
    return answer
