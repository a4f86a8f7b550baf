"""One worker: a membership, the leases it brings, and a shard consumer for each.

    start ──▶ join ──▶ leases come and go ──stop──▶ every shard drained, checkpointed, released ──▶ leave

Runs on the client's event loop. It ends when it is told to, when the application's streams are gone, when a policy
says stop, or when a part of it fails; the leases are given up in order in each case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from streamkit.client.client import AsyncClient
from streamkit.consumer.checkpointer import CheckpointWriter, HeldLease, Track
from streamkit.consumer.config import ConsumerConfig, Start
from streamkit.consumer.dead_letters import DeadLetters, NoDeadLetters
from streamkit.consumer.deadline import Looks
from streamkit.consumer.fetcher import Budget, Fetcher
from streamkit.consumer.handler import Context, Driver
from streamkit.consumer.lease_keeper import LeaseKeeper, Listeners
from streamkit.consumer.shard_consumer import ShardConsumer, make_checkpointer
from streamkit.consumer.stage import Stages
from streamkit.consumer.surroundings import Statistics, Surroundings
from streamkit.consumer.transactional import LeaseTransactions
from streamkit.errors import LeaseLost, StreamkitError, TimedOut, Unavailable
from streamkit.model.codec import Decoding
from streamkit.model.position import parse_position
from streamkit.protocol.conversion import position_to_wire, shard_from_wire
from streamkit.protocol.messages import JoinApplication, LeaseGrant, PauseLease, WorkerReport
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.environment import end_process
from streamkit.runtime.tasks import Tasks, wait_out

log = logging.getLogger("streamkit.consumer")

MakeDriver = Callable[[Track, Context, Stages], Driver]
_LEAVE_S = 5.0                             # for what is left to do when every shard has had its drain time


class _Held:
    """A lease with everything that runs for it."""

    def __init__(self, lease: HeldLease, consumer: ShardConsumer, fetcher: Fetcher, stages: list[Stages]) -> None:
        self.lease = lease
        self.consumer = consumer
        self.fetcher = fetcher
        self.stages = stages
        self.running: asyncio.Task[None] | None = None
        self.stall_told = False


class Member:
    """make_driver: user code for a lease, on stages that make_stages makes for it.

    decoding: how `value` is made, None for bytes.
    """

    def __init__(
        self, client: AsyncClient, config: ConsumerConfig, make_driver: MakeDriver, make_stages: Callable[[], Stages],
        decoding: Decoding | None,
    ) -> None:
        self.statistics = Statistics()
        self.budget = Budget(config.prefetch_bytes_max)
        self._client = client
        self._config = config
        self._make_driver = make_driver
        self._make_stages = make_stages
        self._decoding = decoding or Decoding("bytes")
        self._held: dict[bytes, _Held] = {}
        self._stop = asyncio.Event()
        self._hung: HeldLease | None = None            # the process will be gone soon for it: nothing new is begun
        self._failed: BaseException | None = None
        self._tasks = Tasks("consumer", self._fail)
        random = client.runtime.random
        self._writer = CheckpointWriter(
            config.application, config.worker, client.call, random, config.checkpoint_interval_ms
        )
        self._writer.on_lost = self._on_fenced
        self._keeper = LeaseKeeper(
            client, join_message(config), Listeners(self._on_granted, self._on_draining, self._on_lost),
            self._report,
        )
        self._around = Surroundings(
            config=config, clock=client.runtime.clock, random=random, statistics=self.statistics,
            dead_letters=DeadLetters(client, config.dead_letter) if config.dead_letter else NoDeadLetters(),
            flush=self._writer.flush, nudge=self._writer.nudge, pause=self._pause, wait=wait_or_event,
            alive=self._keeper.check_deadline, late=lambda: self._writer.late, where=config.condition(),
            hung=self._on_hung,
        )

    @property
    def shards(self) -> tuple[str, ...]:
        """"stream/shard" of every lease held now."""
        return tuple(sorted(f"{held.lease.stream}/{held.lease.shard.id}" for held in self._held.values()))

    def stop(self) -> None:
        """Ask `run` to end in order."""
        self._stop.set()

    def kill(self) -> None:
        """End without a word: no shard is drained, nothing is checkpointed or released."""
        for shard in list(self._held):
            self._on_lost(shard)
        self._stop.set()

    async def run(self) -> None:
        """Until stopped. Raises what ended it otherwise."""
        keeping = self._tasks.start(self._keeper.run(), "keeper")
        self._tasks.start(self._writer.run(), "checkpoints")
        self._tasks.start(self._watch_stalls(), "stalls")
        try:
            await self._stop.wait()
        finally:
            await self._drain()
            keeping.cancel()
            await self._keeper.leave()
            await self._tasks.close()
        if self._failed is not None:
            raise self._failed

    async def _drain(self) -> None:
        # Heartbeats go on meanwhile: the leases are ours until each is released.
        for task in await self._drained(list(self._held.values())):
            task.cancel()

    async def _drained(self, leases: list[_Held]) -> set[asyncio.Task[None]]:
        self._keeper.leaving = True
        for held in leases:
            held.consumer.drain(self._config.drain_seconds)
        running = [held.running for held in leases if held.running is not None]
        if not running:
            return set()
        return (await asyncio.wait(running, timeout=self._config.drain_seconds + _LEAVE_S))[1]

    def _on_hung(self, lease: HeldLease, sequence: int) -> None:
        # A thread that hangs would go on beside the shard's next owner. That one finds the attempt, and no farewell:
        # it delivers record by record, and the policy has its say when there are enough of them.
        held = self._held.get(lease.shard.uuid)
        log.critical(
            "handler.hung application=%s worker=%s stream=%s shard=%s sequence=%d timeout_s=%g: nothing ends this call "
            "but the end of its process, which follows\n%s", self._config.application, self._config.worker,
            lease.stream, lease.shard.id, sequence, self._config.handler_timeout_seconds, _stack(held) if held else "",
        )
        if self._hung is None:
            self._hung = lease
            self._tasks.start(self._end_process(lease), "end")

    async def _end_process(self, lease: HeldLease) -> None:
        with contextlib.suppress(StreamkitError):      # it ends all the same; the next owner finds an attempt less
            await self._writer.flush(lease)
        await self._drained([held for held in self._held.values() if held.lease is not lease])
        end_process()

    def _fail(self, error: BaseException) -> None:
        if self._failed is None:
            self._failed = error
        self._stop.set()

    # ---- leases come and go --------------------------------------------------------------------------------

    def _on_left_out(self, records: int) -> None:
        self.statistics.filtered += records

    def _on_granted(self, grant: LeaseGrant) -> None:
        if self._stop.is_set() or self._hung is not None:
            self._tasks.start(self._keeper.release(grant.shard.uuid, grant.lease_epoch), "refusal")
            return
        config = self._config
        shard = shard_from_wire(grant.shard)
        lease = HeldLease(grant, shard, manual=config.checkpoint == "manual")
        records = self._decoding.context(grant.stream, shard)
        fetcher = Fetcher(
            self._client, shard, records, grant.checkpoint, self.budget, application=config.application,
            session=self._keeper.session, lease_epoch=grant.lease_epoch, bytes_max=config.fetch_bytes_max,
            wait_ms=config.fetch_wait_ms, where=self._around.where, on_left_out=self._on_left_out,
            fan_out=config.fan_out,
        )
        stages: list[Stages] = []

        def hands_for(track: Track) -> tuple[Context, Driver]:
            context = Context(track, config.application, config.worker)
            context.looks = Looks(self._keeper.deadline)
            checkpointer = make_checkpointer(track, context, asyncio.get_running_loop(), self._writer.nudge)
            if track is lease:
                context.transactions = LeaseTransactions(self._client, self._writer, lease)
                checkpointer.transact = context.transactions.commit
            stages.append(self._make_stages())
            return context, self._make_driver(track, context, stages[-1])

        consumer = ShardConsumer(lease, *hands_for(lease), fetcher, self._around, hands_for)
        before = self._held.get(shard.uuid)
        held = self._held[shard.uuid] = _Held(lease, consumer, fetcher, stages)
        self._writer.leases[shard.uuid] = lease
        log.info("lease.granted application=%s stream=%s shard=%s lease_epoch=%d position=%d", config.application,
                 grant.stream, shard.id, grant.lease_epoch, grant.checkpoint)
        held.running = self._tasks.start(self._live(held, before), shard.id)

    def _on_draining(self, shard: bytes) -> None:
        if (held := self._held.get(shard)) is not None:
            held.consumer.drain(self._config.drain_seconds)

    def _on_lost(self, shard: bytes) -> None:
        held = self._held.get(shard)
        if held is not None and held.lease is self._hung:
            end_process()                  # the next owner may begin: the others' drain is not waited for
        if held is not None and not held.lease.lost:
            held.lease.lose()
        if held is not None and held.running is not None:
            held.running.cancel()

    def _on_fenced(self, lease: HeldLease) -> None:
        if lease is self._hung:
            end_process()
        self._tasks.start(self._keeper.release(lease.shard.uuid, lease.lease_epoch), "release")
        if (held := self._held.get(lease.shard.uuid)) is not None and held.lease is lease and held.running is not None:
            held.running.cancel()

    async def _live(self, held: _Held, before: _Held | None) -> None:
        # A shard whose earlier lease still winds up here is begun only after that: one call at a time.
        lease = held.lease
        fetching: asyncio.Task[None] | None = None
        try:
            if before is not None and before.running is not None and not before.running.done():
                await asyncio.wait([before.running])
            fetching = asyncio.get_running_loop().create_task(held.fetcher.run())
            await held.consumer.run()
        except LeaseLost as error:
            lease.lose()
            log.info("lease.lost error=%s", error)
        except StreamkitError as error:
            log.error("shard.failed stream=%s shard=%s error=%s", lease.stream, lease.shard.id, error)
            await wait_or_event(1.0, self._stop)           # so that a lease does not come and go in a tight circle
        finally:
            try:
                if fetching is not None:
                    fetching.cancel()
                    await wait_out([fetching])
            finally:
                held.fetcher.close()
                if self._held.get(lease.shard.uuid) is held:
                    del self._held[lease.shard.uuid]
                    self._writer.leases.pop(lease.shard.uuid, None)
        if held.consumer.failed is not None:
            self._fail(held.consumer.failed)
        await self._keeper.release(lease.shard.uuid, lease.lease_epoch)
        if not lease.lost:
            log.info("lease.released stream=%s shard=%s position=%d", lease.stream, lease.shard.id, lease.stored[0])

    def _report(self) -> WorkerReport:
        now_s = asyncio.get_running_loop().time()
        return WorkerReport(
            self._client.runtime.clock.now_ms(), self.budget.used_bytes, self.budget.bytes_max,
            tuple(
                held.consumer.pace.report(shard, now_s, held.consumer.busy_since_s, held.fetcher.throttled)
                for shard, held in self._held.items()
            ),
        )

    async def _pause(self, lease: HeldLease, reason: str) -> None:
        message = PauseLease(
            self._config.application, self._config.worker, lease.shard.uuid, lease.lease_epoch, reason
        )
        backoff = Backoff(self._client.runtime.random, 100, 5_000)
        while True:
            try:
                await self._client.call(message)
                return
            except (Unavailable, TimedOut):
                await asyncio.sleep(backoff.next_ms() / 1000)

    async def _watch_stalls(self) -> None:
        # A handler that hangs keeps its lease, because the process lives; people are told.
        while self._config.stall_seconds:
            await asyncio.sleep(min(self._config.stall_seconds, 10))
            now_s = asyncio.get_running_loop().time()
            for held in self._held.values():
                since_s = held.consumer.busy_since_s
                stalled = since_s is not None and now_s - since_s > self._config.stall_seconds
                if stalled and not held.stall_told:
                    log.warning("handler.stalled application=%s stream=%s shard=%s sequence=%d seconds=%d\n%s",
                                self._config.application, held.lease.stream, held.lease.shard.id,
                                held.consumer.first_unfinished, now_s - (since_s or now_s), _stack(held))
                held.stall_told = stalled


def _stack(held: _Held) -> str:
    return next(filter(None, (stages.stack() for stages in held.stages)), "")


async def wait_or_event(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def join_message(config: ConsumerConfig) -> JoinApplication:
    """What a worker says first."""
    kind, value, by_shard = start_to_wire(config.start)
    return JoinApplication(
        application=config.application, worker=config.worker, streams=config.streams, start_kind=kind,
        start_value=value, start_by_shard=by_shard, membership_ms=config.membership_ms,
        leases_max=config.leases_max or 0, drain_ms=config.drain_seconds * 1000, instance=config.instance or "",
        standby=config.standby, weight=config.weight, assignment=config.assignment,
    )


def start_to_wire(start: Start) -> tuple[str, int, dict[str, str]]:
    """(kind, value, by shard) of JoinApplication. Raises InvalidPosition."""
    if isinstance(start, Mapping):
        return "per_shard", 0, dict(start)
    assert isinstance(start, str | datetime), "ConsumerConfig checked it"
    kind, value = position_to_wire(parse_position(start))
    return kind, value, {}
