"""One shard of a delivery, as a record processor.

    records ──▶ gathering ──full, or its time is over──▶ plan, announced ──▶ chunks written ──▶ checkpoint
                                                              │
                                    another worker finds it: the same range again, the same chunks, the same ids

The announcement is a prepared checkpoint: in the coordinator's log, refused once the lease is another's. While one
range is being written the next is gathered; when that is full too, the shard is read no further. What was gathered and
not announced is simply read again by the next owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Any

import msgspec

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.processor import RecordProcessor, ShardContext
from streamkit.delivery.buffer import Gathering, Range
from streamkit.delivery.chunk import Failure, Plan, plan_id
from streamkit.delivery.patience import Home, Patience, written
from streamkit.delivery.pipeline import Origin, Staged
from streamkit.errors import LeaseLost

log = logging.getLogger("streamkit.delivery")

_NAMES_BYTES_MAX = 48 * 1024               # of a plan's names in its announcement


class ShardDelivery(RecordProcessor):
    """home: the delivery; all methods run on one event loop."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._origin = Origin("", "", "", b"")
        self._gathering = Gathering(home.buffer, (0, 0))
        self._planned: Plan | None = None              # by an owner before, and not finished
        self._checkpointer: Checkpointer | None = None
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False              # nothing is begun any more
        self._defect: BaseException | None = None      # ours; the worker shows it, as it shows a handler's
        self._opened = False
        self._memory = home.memory
        self._patience = Patience(home, "")

    # ---- the worker calls these ------------------------------------------------------------------------------

    async def initialize(self, ctx: ShardContext) -> None:
        """Looks for what an owner before had planned."""
        self._origin = Origin(self._home.name, ctx.stream, ctx.shard, ctx.shard_uuid)
        self._patience = Patience(self._home, ctx.shard)
        self._planned = _found(ctx)
        start = (ctx.position, ctx.sub_position)
        self._gathering = Gathering(self._home.buffer, start, self._planned.end if self._planned is not None else None)
        self._home.progress.repeated += self._planned is not None

    async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
        """Returns when the records are gathered; waits while the range before is still being written."""
        self._checkpointer = checkpointer
        if self._defect is not None:
            raise self._defect
        done = 0
        while done < len(batch) and not self._is_over:
            if self._gathering.is_full:
                await self._begin()
                continue
            if self._memory.is_full and self._gathering.until is None:     # what was planned is owed, whatever it takes
                await self._memory.room()
                continue
            if self._planned is not None and batch.place(done) >= self._planned.end and not self._gathering:
                log.error("delivery.records_gone delivery=%s shard=%s plan=%s: retention took what was planned",
                          self._home.name, self._origin.shard, self._planned.id)
                self._planned = None
                self._gathering = Gathering(self._home.buffer, batch.place(done))
            if not self._gathering:
                self._began(batch, done)
            before = self._gathering.payload_bytes
            done += self._gathering.add(batch.part(done, len(batch)))
            self._memory.gathered(self, self._gathering.payload_bytes - before)
        if self._gathering.is_full and not self._is_over:
            await self._begin()

    async def shard_ended(self, checkpointer: Checkpointer) -> None:
        """Everything is written before the shard's children begin."""
        self._checkpointer = checkpointer
        while self._gathering and not self._is_over:
            await self._begin()
        await self._written()
        if self._is_over:                  # the end must not be checkpointed: it is not delivered
            raise self._defect or RuntimeError("this shard's delivery is over")

    async def shutdown_requested(self, checkpointer: Checkpointer) -> None:
        """What is being written is finished, if there is time; what was gathered is read again by the next owner."""
        self._stop_gathering()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(checkpointer.deadline):
                await self._written()
        await self._end()

    async def lease_lost(self) -> None:
        """Another worker goes on; it finds the plan."""
        await self._end()

    # ---- gathering -------------------------------------------------------------------------------------------

    def _began(self, batch: Batch[Any], index: int) -> None:
        """A range has its first record: from now on its time runs."""
        arrived_ms = round(batch[index].arrived.timestamp() * 1000)
        self._home.progress.oldest_ms.setdefault(self._origin.shard, arrived_ms)
        if self._planned is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._home.buffer.seconds_max, self._time_over)

    def _time_over(self) -> None:
        self._timer = None
        if self._is_over or not self._gathering or self._gathering.until is not None:
            return
        if self._writing is not None:
            self._writing.add_done_callback(lambda _: self._time_over())
            return
        self._start()

    def give_way(self) -> None:
        """Others need the memory: what was gathered is written as soon as may be, however little it is."""
        if self._gathering and self._gathering.until is None and not self._is_over and self._writing is None:
            self._start()

    async def _begin(self) -> None:
        """Write what was gathered, once the range before is done."""
        await self._written()
        if self._writing is None and self._gathering and not self._is_over:
            self._start()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered = self._gathering.take()
        self._memory.begun(self)
        planned, self._planned = self._planned, None
        if planned is None:
            identity = plan_id(self._home.name, self._origin.shard_uuid, gathered.start, gathered.end)
            plan = Plan(identity, gathered.start, gathered.end, gathered.oldest_ms)
        else:
            plan = planned
        self._writing = asyncio.ensure_future(self._deliver(gathered, plan))
        self._writing.add_done_callback(partial(self._ended, gathered.payload_bytes))

    def _ended(self, payload_bytes: int, task: asyncio.Task[None]) -> None:
        self._writing = None
        self._memory.released(payload_bytes)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._is_over = True
            self._defect = None if isinstance(error, LeaseLost) else error

    async def _written(self) -> None:
        while self._writing is not None:
            await asyncio.wait([self._writing])
            await asyncio.sleep(0)         # its callbacks have run then

    def _stop_gathering(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _end(self) -> None:
        self._stop_gathering()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        self._home.progress.oldest_ms.pop(self._origin.shard, None)
        self._home.progress.trouble.pop(self._origin.shard, None)
        self._memory.left(self)
        if self._opened:
            self._opened = False
            await self._home.sink_released()

    # ---- writing ---------------------------------------------------------------------------------------------

    async def _deliver(self, gathered: Range, plan: Plan) -> None:
        """A range from plan to checkpoint. Raises LeaseLost."""
        home, checkpointer = self._home, self._checkpointer
        assert checkpointer is not None, "records came with it"
        if not self._opened:
            await self._patience.until_done(home.sink_opened)
            self._opened = True
        staged: Staged = await self._patience.until_done(partial(home.staged, gathered, plan, self._origin))
        names = tuple(chunk.name for chunk in staged.chunks if chunk.name)
        stale = set(plan.names).difference(names)
        if sum(map(len, names)) > _NAMES_BYTES_MAX:
            names = ()                     # ids are the same all the same; only what a changed function leaves stays
        plan = msgspec.structs.replace(plan, names=names)
        await checkpointer.announce(plan.end, msgspec.msgpack.encode(plan))
        refused: list[Failure] = []
        for chunk in staged.chunks:
            began_ms = home.clock.monotonic_ms()
            refused += await self._patience.until_done(partial(written, home.sink, chunk))
            home.progress.write_us.record(1_000 * (home.clock.monotonic_ms() - began_ms))
        for name in stale:                 # an owner before had another function, or one that says something else
            await self._patience.until_done(partial(_delete, home.sink, name))
        if failures := staged.failures + refused:
            await self._patience.until_done(lambda: home.give_up(failures))
        await checkpointer.checkpoint_prepared(plan.end)
        self._count(gathered, staged, failures)

    def _count(self, gathered: Range, staged: Staged, failures: list[Failure]) -> None:
        progress = self._home.progress
        progress.records += gathered.count
        progress.payload_bytes += gathered.payload_bytes
        progress.written_bytes += sum(len(chunk.body) + sum(map(len, chunk.data)) for chunk in staged.chunks)
        progress.chunks += len(staged.chunks)
        progress.dropped += staged.dropped
        progress.failed.update(failure.code for failure in failures)
        progress.oldest_ms.pop(self._origin.shard, None)
        if self._gathering:
            progress.oldest_ms[self._origin.shard] = self._gathering.oldest_ms


async def _delete(sink: Any, name: str) -> None:
    await sink.delete(name)                # whoever names objects can


def _found(ctx: ShardContext) -> Plan | None:
    """What an owner before announced and did not finish."""
    if ctx.prepared is None:
        return None
    try:
        return msgspec.msgpack.decode(ctx.prepared.state, type=Plan)
    except msgspec.MsgspecError:
        return None                        # another application's, which this one took the name of
