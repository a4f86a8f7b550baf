"""The coordinator of applications: who is a member, who owns which shard, how far each is processed.

It owns the state machine of `leases`, feeds it with messages, time and what the catalog knows, and writes its facts
to the command log. Nothing is answered before everything the answer rests on is durable; many requests share one
append. A heartbeat that asked to wait is answered when its worker has something to learn. Once the log cannot be
written, the coordinator answers everything with that error: what it decided since may be forgotten.
Called by the broker's service (`handle`, `check_fetch`, `connection_lost`) and by its clock (`tick`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from streamkit.broker.application_admin import Administration
from streamkit.broker.application_lag import LagWatch
from streamkit.broker.decisions import Decisions, left_to_wire
from streamkit.broker.found_streams import found_stream, is_older, is_same, start_of
from streamkit.errors import (
    CorruptFile,
    DiskFull,
    InvalidRequest,
    LimitReached,
    StreamkitError,
    StreamNotFound,
)
from streamkit.leases import events, facts
from streamkit.leases.applications import Applications
from streamkit.leases.membership import heartbeat_ms
from streamkit.leases.table import Application
from streamkit.model.limits import WEIGHT_MAX, WEIGHT_MIN
from streamkit.model.shard import shard_id
from streamkit.model.stream import StreamDescription, StreamStatus
from streamkit.protocol import messages
from streamkit.protocol.conversion import shard_to_wire
from streamkit.runtime.interfaces import Clock

log = logging.getLogger("streamkit.broker")

_NAME_CHARACTERS_MAX = 128
_FULL_RETRY_S = 0.2
_KEPT_BYTES_MAX = 512 * 1024                # in one message of checkpoints: one fact, which is one record of the log


class CommandLog(Protocol):
    """The internal log that the coordinator's facts live in."""

    async def append(self, records: list[bytes]) -> int:
        """The sequence of the first of them; returns when all are durable, in order."""

    def replay(self) -> AsyncIterator[bytes]:
        """Every record from the oldest kept on."""

    async def trim(self, before: int) -> None:
        """Records below that sequence may be dropped; more may stay."""


class Streams(Protocol):
    """What the coordinator asks about streams. All of it is in the node's memory."""

    def stream(self, name: str) -> StreamDescription:
        """Raises StreamNotFound."""

    def high_watermark(self, shard: bytes) -> int:
        """Raises ShardNotFound."""

    def resolve(self, shard: bytes, kind: str, value: int) -> int:
        """The sequence a position means now; kinds as in ResolvePosition."""

    def leads(self, shard: bytes) -> bool:
        """Whether this node leads it, and so knows its high watermark and not merely a bound below it."""

    def append_time_of(self, shard: bytes, sequence: int) -> int | None:
        """When the record at `sequence`, or the first kept after it, arrived (ms); None: there is none."""

    def backlog(self, shard: bytes, sequence: int) -> tuple[int, int]:
        """(log_start, stored bytes from `sequence` on)."""

    def retention_hours(self, name: str) -> int:
        """How long the stream is kept. Raises StreamNotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Bounds of membership, and when the command log is rewritten."""

    membership_ms_min: int = 1_000
    membership_ms_max: int = 60_000
    members_max: int = 10_000              # of one application
    streams_check_ms: int = 1_000          # how often deleted and awaited streams are looked for
    snapshot_bytes_min: int = 8 << 20      # facts written since the last snapshot that make a new one worth while


class Coordinator:
    """All applications of a node. Public methods are called on the event loop."""

    def __init__(
        self, journal: CommandLog, streams: Streams, clock: Clock, config: CoordinatorConfig | None = None
    ) -> None:
        self.machine = Applications()
        self.checkpoints: dict[str, int] = {"ok": 0, "fenced": 0, "behind": 0, "beyond": 0}
        self.lag = LagWatch(streams, clock)
        self._journal = journal
        self._streams = streams
        self._clock = clock
        self._config = config or CoordinatorConfig()
        self._queue: list[bytes] = []
        self._queued: asyncio.Future[None] | None = None       # done when what is in the queue is durable, or refused
        self._writing: asyncio.Future[None] | None = None      # the same for what is being written now
        self._writer: asyncio.Task[None] | None = None
        self._failed: Exception | None = None      # the log takes nothing more until the node is restarted
        self._refused: DiskFull | None = None      # the last try found no room
        self._snapshot_wanted = False
        self._snapshot_bytes = 0
        self._since_snapshot = 0
        self._waiting: dict[tuple[str, int], list[asyncio.Future[None]]] = {}
        self._told: dict[tuple[str, int], tuple[frozenset[bytes], tuple[str, ...]]] = {}
        self._reports: dict[tuple[str, int], tuple[messages.WorkerReport, int]] = {}   # and how far its clock is ahead
        self._streams_checked_ms = 0
        self._maps_seen: dict[tuple[str, str], tuple[int, int]] = {}   # (application, stream) → creation, map version
        self.administration = Administration(
            self.machine, streams, self.lag, clock, self._step, self._settled, self._reports_of
        )
        self.decisions = Decisions(self.machine.table, clock, self._step, self._settled, self.checkpoints, self._beyond)
        self._handlers: dict[type, Callable[[Any, int], Awaitable[messages.Message]]] = {
            messages.JoinApplication: self._join,
            messages.Heartbeat: self._heartbeat,
            messages.Checkpoint: self._checkpoint,
            messages.ReleaseLeases: self._release,
            messages.LeaveApplication: self._leave,
            messages.PauseLease: self._pause,
            messages.ResumeLeases: self._resume,
            **self.administration.handlers,
            **self.decisions.handlers,
        }

    # ---- for the broker ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Replay the command log. Raises CorruptFile when it does not make sense."""
        count = 0
        async for record in self._journal.replay():
            try:
                self.machine.table.replay(facts.decode(record))
            except (msgspec.MsgspecError, KeyError, ValueError, OverflowError, AssertionError) as cause:
                raise CorruptFile(
                    f"fact {count} of the coordinator's log does not fit what stands before it: {cause}",
                    try_="streamkit segment inspect shows the log; restore the directory from a copy",
                    path="__applications", position=count, reason=str(cause),
                ) from cause
            count += 1
            self._since_snapshot += len(record)
        if self.machine.table.empty:
            self._store(self.machine.genesis())
        self._step(events.Restarted(self._clock.monotonic_ms()))
        await self._settled()
        self.administration.warn_of_problems()
        log.info(
            "coordinator.opened facts=%d applications=%d members=%d", count, len(self.machine.table.applications),
            sum(len(application.members) for application in self.machine.table.applications.values()),
        )

    async def close(self) -> None:
        """Everything decided is written; heartbeats that wait are answered."""
        for futures in self._waiting.values():
            for future in futures:
                _wake(future)
        if self._failed is None and self._refused is None:
            with contextlib.suppress(DiskFull):
                await self._settled()
        await self.decisions.close()
        if self._refused is not None and self._writer is not None:
            self._writer.cancel()                      # nobody was promised what finds no room

    async def handle(self, message: messages.Message, connection_id: int) -> messages.Message:
        """Answer one of the messages 30-46. Raises the typed error that the client is to get."""
        if (error := self._failed or self._refused) is not None:
            raise error
        handler = self._handlers.get(type(message))
        assert handler is not None, f"{type(message).__name__} is not for the coordinator"
        return await handler(message, connection_id)

    def check_fetch(self, application: str, session: int, shard: bytes, lease_epoch: int) -> None:
        """Raises LeaseLost unless that session owns the shard in that lease epoch; ApplicationNotFound."""
        self.machine.check_fetch(application, session, shard, lease_epoch)

    @property
    def has_applications(self) -> bool:
        """Whether ticks are owed."""
        table = self.machine.table
        return bool(table.applications or table.left or table.writers)

    def stream_changed(self, name: str) -> None:
        """The stream was resharded, or a closed shard of it is gone; `tick` would find out a little later."""
        if self._failed is None:
            for application in list(self.machine.table.applications.values()):
                if name in application.streams:
                    self._look_at_streams(application)

    def connection_lost(self, connection_id: int) -> None:
        """Workers on that connection have one heartbeat's time to come back."""
        self._step(events.ConnectionLost(connection_id, self._clock.monotonic_ms()))

    async def tick(self) -> None:
        """Expire members and drains, look for deleted and new streams, rewrite a long log. Owed each 100–500 ms."""
        if self._failed is not None:
            return
        now_ms = self._clock.monotonic_ms()
        self._step(events.Tick(now_ms, self._clock.now_ms()))
        if now_ms - self._streams_checked_ms >= self._config.streams_check_ms:
            self._streams_checked_ms = now_ms
            for application in list(self.machine.table.applications.values()):
                self._look_at_streams(application)
            self.lag.look(self.machine.table.applications)
            self.decisions.look()
            self._told = {member: told for member, told in self._told.items() if self._is_member(*member)}
            self._reports = {member: told for member, told in self._reports.items() if self._is_member(*member)}
        if self._since_snapshot > max(self._config.snapshot_bytes_min, 4 * self._snapshot_bytes):
            self._snapshot_wanted = True
            self._start_writer()
        with contextlib.suppress(StreamkitError):      # whoever asks next is told
            await self._settled()

    def _is_member(self, name: str, session: int) -> bool:
        application = self.machine.table.applications.get(name)
        return application is not None and session in application.members

    # ---- writing -------------------------------------------------------------------------------------------

    def _step(self, event: events.Event) -> events.Effects:
        effects = self.machine.step(event)
        self._store(effects.write)
        for member in effects.wake:
            for future in self._waiting.get(member, ()):
                _wake(future)
        return effects

    def _store(self, write: tuple[bytes, ...]) -> None:
        if write:
            self._queue.extend(write)
            if self._queued is None and self._failed is None:
                self._queued = asyncio.get_running_loop().create_future()
            self._start_writer()

    def _start_writer(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        # The only writer, so that facts reach the log in the order they were decided, a snapshot in one piece.
        while (self._queue or self._snapshot_wanted) and self._failed is None:
            batch, self._queue = self._queue, []
            self._writing, self._queued = self._queued, None
            image = [facts.encode(fact) for fact in self.machine.table.snapshot()] if self._snapshot_wanted else []
            self._snapshot_wanted = False
            try:
                if batch:
                    await self._journal.append(batch)
                    self._since_snapshot += sum(map(len, batch))
                    batch = []
                if image:
                    await self._journal.trim(await self._journal.append(image))
                    self._snapshot_bytes = sum(map(len, image))
                    self._since_snapshot = 0
            except DiskFull as error:
                # What was decided stays decided, and is written when there is room again.
                log.warning("coordinator.log_waits error=%s", error)
                self._queue[:0] = batch
                self._refused = error
                self._told_writing()
                await asyncio.sleep(_FULL_RETRY_S)
                continue
            except Exception as error:
                log.error("coordinator.log_failed error=%s", error)
                self._failed = error
            else:
                self._refused = None
            self._told_writing()
        if self._failed is not None and self._queued is not None:
            self._queued.set_result(None)          # came while the log failed: it is not going to be written
            self._queued = None

    def _told_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.set_result(None)

    async def _settled(self) -> None:
        """Everything decided up to now is durable. Raises what stopped the log."""
        if self._failed is None and (durable := self._queued or self._writing) is not None:
            await asyncio.shield(durable)
        if (error := self._failed or self._refused) is not None:
            raise error

    # ---- members -------------------------------------------------------------------------------------------

    async def _join(self, message: messages.JoinApplication, connection_id: int) -> messages.Message:
        self._check_join(message)
        now_ms = self._clock.monotonic_ms()
        effects = self._step(events.Join(
            application=message.application,
            worker=message.worker,
            streams=tuple(dict.fromkeys(message.streams)),
            found=self._find_streams(message),
            membership_ms=message.membership_ms,
            leases_max=message.leases_max,
            drain_ms=message.drain_ms,
            connection=connection_id,
            now_ms=now_ms,
            wall_ms=self._clock.now_ms(),
            instance=message.instance,
            incarnation=message.incarnation,
            before=message.before,
            standby=message.standby,
            weight=message.weight,
            assignment=message.assignment,
        ))
        assert effects.view is not None, "a join is answered with a view"
        await self._settled()
        log.info("application.worker_joined application=%s worker=%s session=%d",
                 message.application, message.worker, effects.view.session)
        return self._membership((message.application, effects.view.session), effects.view)

    def _check_join(self, message: messages.JoinApplication) -> None:
        config = self._config
        instance = message.instance or "-"
        for field, value in (("application", message.application), ("worker", message.worker), ("instance", instance)):
            if not 1 <= len(value) <= _NAME_CHARACTERS_MAX or not value.isprintable():
                raise InvalidRequest(
                    f"{value[:140]!r} is not a name for {'a' if field[0] == 'w' else 'an'} {field}",
                    try_="use 1 to 128 printable characters", field=field, value=value[:140],
                )
        if not message.streams:
            raise InvalidRequest("a worker joins for one stream at least", try_="name a stream", field="streams")
        if not config.membership_ms_min <= message.membership_ms <= config.membership_ms_max:
            raise InvalidRequest(
                f"membership_ms must be {config.membership_ms_min}..{config.membership_ms_max}, "
                f"got {message.membership_ms}",
                try_="choose membership_ms in that range", field="membership_ms", value=message.membership_ms,
            )
        if message.leases_max < 0 or not 0 <= message.drain_ms <= 3_600_000:
            raise InvalidRequest(
                f"leases_max {message.leases_max} and drain_ms {message.drain_ms} are not both possible",
                try_="choose leases_max >= 0 and drain_ms 0..3600000", field="leases_max", value=message.leases_max,
            )
        if not WEIGHT_MIN <= message.weight <= WEIGHT_MAX:     # false for what is no number, too
            raise InvalidRequest(
                f"weight must be {WEIGHT_MIN}..{WEIGHT_MAX}, got {message.weight}",
                try_="choose a weight in that range", field="weight", value=message.weight,
            )
        if message.assignment not in ("count", "load"):
            raise InvalidRequest(
                f"assignment must be count or load, got {message.assignment[:20]!r}",
                try_='choose "count" or "load"', field="assignment", value=message.assignment[:20],
            )
        application = self.machine.table.applications.get(message.application)
        if application is not None and len(application.members) >= config.members_max:
            raise LimitReached(
                f'application "{message.application}" has {config.members_max} workers, which is the limit',
                try_="stop some, or use a second application", limit=config.members_max, scope=message.application,
            )

    def _find_streams(self, message: messages.JoinApplication) -> tuple[events.FoundStream, ...]:
        # Streams new to the application, with their start. One that does not exist is waited for, unless all are so.
        application = self.machine.table.applications.get(message.application)
        known = application.streams.keys() if application is not None else ()
        found = []
        missing: StreamNotFound | None = None
        present = 0
        for name in dict.fromkeys(message.streams):
            try:
                stream = self._active(name)
            except StreamNotFound as error:
                missing = error
                continue
            present += 1
            if name not in known:
                found.append(found_stream(stream, self._starts(message, stream)))
        if missing is not None and not present:
            raise missing
        return tuple(found)

    def _active(self, name: str) -> StreamDescription:
        stream = self._streams.stream(name)
        if stream.status != StreamStatus.ACTIVE:
            raise StreamNotFound(
                f'stream "{name}" is {stream.status.value}', try_=f"streamkit stream describe {name}", stream=name
            )
        return stream

    def _starts(self, message: messages.JoinApplication, stream: StreamDescription) -> dict[bytes, int]:
        # Where each shard is started, once and for all.
        starts: dict[bytes, int] = {}
        named: set[int] = set()                # ordinals the caller spoke of, and their descendants
        for shard in stream.shards:
            kind, value = message.start_kind, message.start_value
            if kind == "per_shard":
                kind, value = start_of(message.start_by_shard.get(shard.id), shard, named)
            if kind == "latest" and shard.end is not None:
                starts[shard.uuid] = shard.end
            else:
                starts[shard.uuid] = self._streams.resolve(shard.uuid, kind, value)
        return starts

    async def _heartbeat(self, message: messages.Heartbeat, connection_id: int) -> messages.Message:
        member = (message.application, message.session)
        effects = self._step(events.Beat(
            message.application, message.session, message.owned, connection_id, self._clock.monotonic_ms(),
            [(pace.shard, pace.load, pace.observed_ms) for pace in message.report.shards] if message.report else (),
        ))
        view = effects.view
        assert view is not None, "a heartbeat is answered with a view"
        if message.report is not None:
            self._reports[member] = message.report, message.report.wall_ms - self._clock.now_ms()
        if message.wait_ms > 0 and not self._news(member, view):
            await self._wait_for_news(member, min(message.wait_ms, heartbeat_ms(view.membership_ms)))
            view = self._step(events.Look(message.application, message.session, message.owned)).view
            assert view is not None, "a look is answered with a view"
        await self._settled()
        return self._membership(member, view)

    def _news(self, member: tuple[str, int], view: events.View) -> bool:
        # A drain that is over is none: who is told nothing takes this for a coordinator that lets nobody wait.
        draining, missing = self._told.get(member, (frozenset(), ()))
        return bool(view.granted or view.lost) or not draining.issuperset(view.draining) or missing != view.missing

    async def _wait_for_news(self, member: tuple[str, int], wait_ms: int) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(wait_ms / 1000, _wake, future)
        futures = self._waiting.setdefault(member, [])
        futures.append(future)
        try:
            await future
        finally:
            timer.cancel()
            futures.remove(future)
            if not futures:
                self._waiting.pop(member, None)

    def _membership(self, member: tuple[str, int], view: events.View) -> messages.Membership:
        self._told[member] = (frozenset(view.draining), view.missing)
        shards: dict[bytes, messages.ShardInfo] = {}
        created_ms = self.machine.application(member[0]).created_ms if view.granted else 0
        granted_now = {lease.shard for lease in view.granted}
        for name in {lease.stream for lease in view.granted}:
            try:
                shards.update(
                    (shard.uuid, shard_to_wire(shard)) for shard in self._streams.stream(name).shards
                    if shard.uuid in granted_now
                )
            except StreamNotFound:
                continue                   # deleted a moment ago; the next look at the streams takes its leases away
        granted = tuple(
            messages.LeaseGrant(
                lease.stream, shards[lease.shard], lease.lease_epoch, lease.checkpoint,
                lease.takeovers_without_progress, lease.previous_owner_crashed, dict(lease.attempts),
                lease.sub_sequence, created_ms, lease.app_state, lease.prepared,
                lease.ahead, left_to_wire(lease.left),
            )
            for lease in view.granted if lease.shard in shards
        )
        return messages.Membership(view.session, view.membership_ms, granted, view.lost, view.draining, view.missing)

    async def _leave(self, message: messages.LeaveApplication, connection_id: int) -> messages.Message:
        self._step(events.Leave(message.application, message.session, self._clock.monotonic_ms(), message.away))
        self._told.pop((message.application, message.session), None)
        await self._settled()
        log.info("application.worker_left application=%s worker=%s", message.application, message.worker)
        return messages.Done()

    # ---- leases --------------------------------------------------------------------------------------------

    async def _checkpoint(self, message: messages.Checkpoint, connection_id: int) -> messages.Message:
        kept_bytes = sum(len(item.app_state or b"") + (len(item.prepared[2]) if item.prepared else 0)
                         for item in message.items)
        if kept_bytes > _KEPT_BYTES_MAX:
            raise InvalidRequest(
                f"checkpoints with {kept_bytes} bytes of state at once; at most {_KEPT_BYTES_MAX}",
                try_="send them in several messages", field="items", value=kept_bytes,
            )
        effects = self._step(events.Checkpoints(
            message.application, message.items, self._clock.now_ms(), self._beyond(message, message.items),
            self._clock.monotonic_ms(),
        ))
        for result in effects.results:
            self.checkpoints[result] += 1
        await self._settled()
        return messages.Checkpointed(effects.results)

    def _beyond(
        self, message: messages.Checkpoint | messages.CommitTransaction, items: Sequence[messages.CheckpointItem]
    ) -> list[int]:
        # A worker in error; or one that read what the shard lost since, where a stream's durability allows that.
        beyond = []
        for i, item in enumerate(items):
            try:
                high_watermark = self._streams.high_watermark(item.shard)
            except StreamkitError:
                continue                   # deleted a moment ago; its lease is fenced, or about to go
            if item.sequence > high_watermark and self._streams.leads(item.shard):
                beyond.append(i)
                log.error("checkpoint.beyond application=%s worker=%s shard=%s sequence=%d high_watermark=%d",
                          message.application, message.worker, item.shard.hex(), item.sequence, high_watermark)
        return beyond

    async def _release(self, message: messages.ReleaseLeases, connection_id: int) -> messages.Message:
        self._step(events.Release(
            message.application, message.leases, self._clock.monotonic_ms(), message.leaving_session
        ))
        await self._settled()
        return messages.Done()

    async def _pause(self, message: messages.PauseLease, connection_id: int) -> messages.Message:
        self._step(events.Pause(message.application, message.shard, message.lease_epoch, message.reason))
        await self._settled()
        log.warning("application.lease_paused application=%s worker=%s shard=%s reason=%s",
                    message.application, message.worker, message.shard.hex(), message.reason[:200])
        return messages.Done()

    async def _resume(self, message: messages.ResumeLeases, connection_id: int) -> messages.Message:
        self._step(events.Resume(message.application, self._clock.monotonic_ms()))
        await self._settled()
        return messages.Done()

    def _reports_of(self, application: Application) -> tuple[messages.WorkerReport, ...]:
        return tuple(self._report(application, session) for session in sorted(application.members)
                     if (application.name, session) in self._reports)

    def _report(self, application: Application, session: int) -> messages.WorkerReport:
        # What the worker told last, with the names that its bytes stand for.
        told, clock_ms = self._reports[application.name, session]
        shards = []
        for pace in told.shards:
            stream = application.stream_of.get(pace.shard)
            if stream is not None:
                ordinal = application.streams[stream][pace.shard]
                shards.append(msgspec.structs.replace(pace, stream=stream, ordinal=ordinal))
        return msgspec.structs.replace(
            told, shards=tuple(shards), worker=application.members[session].worker, clock_ms=clock_ms
        )

    # ---- streams that come and go --------------------------------------------------------------------------

    def _look_at_streams(self, application: Application) -> None:
        # A stream that appears under an application is read from its beginning: all of it came after the join. So are
        # children, whose parents the application has.
        found: list[events.FoundStream] = []
        gone: list[str] = []
        changed: list[events.FoundStream] = []
        for name in sorted({*application.streams, *application.awaited()}):
            try:
                stream = self._active(name)
            except StreamNotFound:
                if name in application.streams:
                    gone.append(name)
                continue
            seen = (stream.created_ms, stream.map_version)
            if name in application.streams:
                if self._maps_seen.get((application.name, name)) == seen:
                    continue
                if not is_same(application, stream):
                    gone.append(name)      # deleted and created again: another stream of the same name
            known = name in application.streams and name not in gone
            if known and is_older(application, stream):
                continue
            new = [shard for shard in stream.shards if not known or shard.uuid not in application.leases]
            try:
                told = found_stream(stream, {s.uuid: self._streams.resolve(s.uuid, "trim_horizon", 0) for s in new})
            except StreamkitError:
                continue                   # a shard that was made a moment ago, and is not served yet
            if known:
                self._warn_of_lost(application, stream)
            (changed if known else found).append(told)
            self._maps_seen[application.name, name] = seen
        if not found and not gone and not changed:
            return
        effects = self._step(events.StreamsSeen(
            application.name, tuple(found), tuple(gone), self._clock.monotonic_ms(), tuple(changed)
        ))
        if effects.write:
            log.info("application.streams_changed application=%s found=%s gone=%s changed=%s", application.name,
                     *(",".join(each) for each in ([s.name for s in found], gone, [s.name for s in changed])))

    def _warn_of_lost(self, application: Application, stream: StreamDescription) -> None:
        there = {shard.uuid for shard in stream.shards}
        for shard, ordinal in application.streams[stream.name].items():
            if shard not in there and (row := application.leases.row(shard))[0] != "complete":
                log.error("records.lost_to_retention application=%s stream=%s shard=%s records=%d", application.name,
                          stream.name, shard_id(ordinal), max(0, application.ends.get(shard, row[3]) - row[3]))


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
