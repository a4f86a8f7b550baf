"""What happens to a copy's log besides appends: it promises an epoch, may or may not vote, is cut, begins anew.

All of it is durable when it returns. Whatever writes a shard's `super` takes its turn (`turn`), checkpoints too.
Made by `log_directory`, whose methods of the same names are the way in. Read `truncate` first, then `cut`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from streamkit._core.journal import Journal
from streamkit.errors import CorruptFile
from streamkit.runtime.interfaces import Buffer, Disk, Executor
from streamkit.storage import recovery
from streamkit.storage.checkpoint import (
    Snapshot,
    make_sealed,
    pack_epochs,
    take_snapshot,
    write_checkpoint,
    write_super,
)
from streamkit.storage.cut import Place, Stored, begin_cut, epoch_before, find_place, finish_cut
from streamkit.storage.disk_errors import FULL, FULL_RETRY_SECONDS
from streamkit.storage.marks import Marks, remove_marks
from streamkit.storage.pledges import Pledges
from streamkit.storage.repair import (
    apply_plan,
    make_plan,
    make_whole,
    remove_files,
    repair_on_disk,
    replace_on_disk,
    stale_snapshots,
)
from streamkit.storage.shard_log import Damage, ShardLog
from streamkit.storage.super_slots import ShardFacts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewShard:
    """A copy to be made. start: sequence that the empty log begins at, when the shard is older than the copy."""

    incarnation: bytes
    start: int = 0
    certain: bool = True
    promised_epoch: int = 0

    def facts(self) -> ShardFacts:
        return ShardFacts(
            incarnation=self.incarnation, promised_epoch=self.promised_epoch, certain=self.certain,
            log_start=self.start, sequence=self.start, segment_base=self.start,
        )  # fmt: skip


class Changes:
    """settle: awaits until the flusher is done with a shard; raises DiskFull or DiskFailed when it will not be.

    failed: told of an OSError or SyncFailed; returns the error to raise. apply, take_back: what became of a snapshot.
    """

    def __init__(
        self, *, disk: Disk, executor: Executor, root: str, producers_max: int, journal: Journal, marks: Marks,
        pledges: Pledges, settle: Callable[[ShardLog], Awaitable[None]], failed: Callable[[Exception, bool], Exception],
        apply: Callable[[Snapshot], None], take_back: Callable[[Snapshot], None],
    ) -> None:  # fmt: skip
        self._disk, self._executor, self._root, self._producers_max = disk, executor, root, producers_max
        self._journal, self._marks, self.pledges = journal, marks, pledges
        self._settle, self._failed, self._apply = settle, failed, apply
        self._take_back = take_back
        self.turn = asyncio.Lock()
        self.ending = False
        self._under_way: set[asyncio.Task[Any]] = set()

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """A change that has begun goes to its end, also when nobody waits for it any more: disk and memory agree."""
        task = asyncio.get_running_loop().create_task(work, name="storage.change")
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()                                   # told to `failed`, and to whoever still waits

    async def drained(self) -> None:
        """Nothing is under way any more, and nothing waits for space."""
        self.ending = True
        while self._under_way:
            await asyncio.wait(self._under_way)

    # ---- promises and certainty -------------------------------------------------------------------------------

    async def promise(self, logs: Mapping[ShardLog, int]) -> None:
        """Never accept anything older than that epoch again. One sync, however many logs."""
        wanted = {log: epoch for log, epoch in logs.items() if epoch > log.promised_epoch}
        if wanted:
            await self._pledge({log.uuid: epoch for log, epoch in wanted.items()}, ())
            for log, epoch in wanted.items():
                log.promised_epoch = max(epoch, log.promised_epoch)

    async def mark_memory(self, logs: list[ShardLog]) -> None:
        """Have it on disk that these logs may hold batches that are not; only then those count as written."""
        await self._pledge({}, [log.uuid for log in logs])
        for log in logs:
            log.memory_marked = True
            log.node.note_progress(log)

    async def _pledge(self, promises: Mapping[bytes, int], memory: Iterable[bytes]) -> None:
        try:
            await self.pledges.write(promises, memory)
        except Exception as cause:
            raise self._failed(cause, False) from cause

    async def set_certain(self, log: ShardLog, certain: bool) -> None:
        """Whether nothing acknowledged can be missing from the log. True: it is synced first, as it is now.

        Raises CorruptFile (part of the log is damaged, so it cannot be certain), DiskFull, DiskFailed.
        """
        async with self.turn:
            if log.dropped or (log.certain == log.facts.certain == certain and not (certain and log.facts.damaged)):
                return
            if certain and (log.damages or (log.facts.damaged and await log.verify())):
                damage = log.damages[0]
                raise CorruptFile(
                    f"records {damage.sequence} to {damage.next_sequence} of {log.path} are damaged",
                    try_="repair them from another copy first", path=damage.path, position=damage.position,
                    reason=damage.reason, shard=log.uuid.hex(), sequence=damage.sequence,
                    next_sequence=damage.next_sequence,
                )  # fmt: skip
            if not certain:
                log.certain = False                            # at once; nobody may be told otherwise meanwhile
                await self._write_facts(log, replace(log.facts, certain=False, doubtful=False))
                return
            await self._settle(log)
            snapshot = take_snapshot(log)
            await self._checkpoint(
                replace(snapshot, facts=replace(snapshot.facts, certain=True, damaged=False, doubtful=False))
            )
            log.certain = True

    async def _checkpoint(self, snapshot: Snapshot) -> None:
        for segment in snapshot.segments:
            segment.dirty = False
        try:
            await self._executor.run(write_checkpoint, self._disk, self._root, [snapshot])
        except Exception as cause:
            self._take_back(snapshot)
            raise self._failed(cause, getattr(cause, "errno", 0) not in FULL) from cause
        self._apply(snapshot)

    async def _write_facts(self, log: ShardLog, facts: ShardFacts) -> None:
        try:
            await self._executor.run(write_super, self._disk, log.path, facts, log.generation + 1)
        except Exception as cause:
            raise self._failed(cause, False) from cause
        log.facts, log.generation = facts, log.generation + 1

    async def repair(self, log: ShardLog, damage: Damage, batches: Buffer | Iterable[Buffer]) -> bool:
        """Put a peer's batches where damaged ones are; they hold at least [damage.sequence, damage.next_sequence).

        True once they are written, synced and read back; the damage is forgotten then. False: these batches do not
        repair it, and nothing was changed. Raises DiskFull, DiskFailed.
        """
        async with self.turn:
            if log.dropped or damage not in log.damages:
                return False
            await self._settle(log)
            if log.facts.sequence < damage.next_sequence:
                # What the journal or a mark says of the range may be of other batches, which were never committed: from
                # the checkpoint on it counts no more.
                await self._checkpoint(take_snapshot(log))
            plan = make_plan(log, damage, batches) if damage in log.damages else None
            if plan is None:
                return False
            sealed = plan.segment is None or plan.segment.sealed
            if not await self._try(repair_on_disk, self._disk, plan, sealed):
                return False
            await self._try(remove_files, self._disk, stale_snapshots(log, damage.sequence))
            if not log.dropped:
                apply_plan(log, damage, plan)
                log.checkpoint_due = True
            return True

    async def close_segment(self, log: ShardLog, sequence: int) -> tuple[int, int]:
        """[base, end) of the segment that holds `sequence`; it takes nothing more, and is in its file.

        (0, 0) when there is none. Raises DiskFull, DiskFailed.
        """
        async with self.turn:
            found = [segment for segment in log.segments if segment.base <= sequence < segment.end]
            if log.dropped or not found:
                return 0, 0
            if not found[0].sealed:
                log.roll(log.last_append_ms)
            await self._settle(log)
            return found[0].base, found[0].end

    async def rewrite(self, log: ShardLog, base: int, batches: Iterable[Buffer]) -> bool:
        """A peer's batches in the place of a whole segment that takes nothing more, and of all its damage.

        True once they are written, synced and read back. False: they are not all of it. Raises DiskFull, DiskFailed.
        """
        async with self.turn:
            found = [segment for segment in log.segments if segment.base == base and segment.sealed]
            if log.dropped or not found:
                return False
            await self._settle(log)
            if log.facts.sequence < found[0].end or log.facts.segment_base == base:
                await self._checkpoint(take_snapshot(log))     # as for `repair`; and positions change
            plan = make_whole(log, found[0], batches) if found[0] in log.segments else None
            if plan is None or found[0].in_flight:
                return False
            found[0].close_file()
            rewritten = await self._try(replace_on_disk, self._disk, plan)
            if found[0].file is not None:
                found[0].close_file()                          # opened by a reader meanwhile: the old one, perhaps
            if not rewritten or log.dropped or found[0] not in log.segments:
                return False
            await self._try(remove_files, self._disk, [log.segment_path(found[0], ".idx"),
                                                       *stale_snapshots(log, base)])  # fmt: skip
            log.rewritten += 1
            apply_plan(log, None, plan)
            log.checkpoint_due = True
            return True

    # ---- cutting ----------------------------------------------------------------------------------------------

    async def truncate(self, log: ShardLog, sequence: int) -> None:
        """The log ends at `sequence` from now on, or at the border before it when a batch lies across; or where damage
        begins that reaches there, and then it is not certain any more.

        A crash leaves it as before or as after. What was cut no longer counts as durable, nor as lost. Nothing may be
        appended meanwhile. Raises DiskFull, DiskFailed.
        """
        async with self.turn:
            assert sequence >= log.log_start, "what lies before log_start is not there to be cut"
            if log.dropped or sequence >= log.log_end:
                return
            log.changing = True
            try:
                await self._settle(log)
                stored = [
                    Stored(path=log.segment_path(segment), base=segment.base, end=segment.end, size=segment.position)
                    for segment in log.segments
                ]
                place = await self._try(find_place, self._disk, stored, log.seed, sequence)
                settled_file, settled_group = self._journal.horizon
                facts = replace(
                    log.facts, certain=log.certain and not place.damaged, cutting=True,
                    promised_epoch=log.promised_epoch,
                    memory_mode=log.facts.memory_mode or log.memory_marked, has_producers=len(log.producers) > 0,
                    log_start=log.log_start, sequence=place.sequence, segment_base=place.segment_base,
                    position=place.position, batches=place.batches, first_append_ms=place.first_append_ms,
                    headers_crc=place.headers_crc, last_append_ms=place.last_append_ms,
                    epoch=max(place.epoch, epoch_before(log.epochs, place.sequence)),
                    closing_end=log.closing_end if log.closing and log.closing_end <= place.sequence else 0,
                    settled_file=settled_file, settled_group=settled_group,
                )  # fmt: skip
                await self._cut(log, facts, self._kept(log, place))
            finally:
                log.changing = False

    async def reset(self, log: ShardLog, *, start: int, incarnation: bytes) -> None:
        """Throw the contents away: an empty log that begins at `start`, another incarnation, not certain.

        What was promised stays promised. A crash leaves the log as before or as after. Raises DiskFull, DiskFailed.
        """
        async with self.turn:
            if log.dropped:
                return
            log.changing = True
            try:
                await self._settle(log)
                settled_file, settled_group = self._journal.horizon
                facts = ShardFacts(
                    incarnation=incarnation, promised_epoch=log.promised_epoch, certain=False, cutting=True,
                    memory_mode=log.facts.memory_mode or log.memory_marked, log_start=start, sequence=start,
                    segment_base=start, settled_file=settled_file, settled_group=settled_group,
                )  # fmt: skip
                await self._cut(log, facts, [])
            finally:
                log.changing = False

    def _kept(self, log: ShardLog, place: Place) -> list[str]:
        return [
            log.segment_path(segment) for segment in log.segments
            if segment.base < place.segment_base or (segment.base == place.segment_base and place.position)
        ]  # fmt: skip

    async def _cut(self, log: ShardLog, facts: ShardFacts, keep: list[str]) -> None:
        sealed = [
            make_sealed(log, segment) for segment in log.sealed_new
            if segment.measured and segment.base < facts.segment_base and log.segment_path(segment) in keep
        ]  # fmt: skip
        async with self._marks.writing:
            await self._try(remove_marks, self._disk, log.path)
            await self._try(
                begin_cut, self._disk, log.path, log.generation + 1, facts, pack_epochs(log.epochs), keep, sealed
            )
            await self._finish_cut(log, facts, bool(keep))

    async def _finish_cut(self, log: ShardLog, facts: ShardFacts, keeps: bool) -> None:
        """Until it returns no mark may be written: one that waits learns from `cuts` alone that it is void."""
        for segment in log.segments:
            segment.close_file()
        while True:
            try:
                found = await self._executor.run(self._finish, log, facts)
                break
            except Exception as cause:
                if getattr(cause, "errno", 0) not in FULL or self.ending:
                    raise self._failed(cause, True) from cause         # decided, and not done: only a restart can tell
                await asyncio.sleep(FULL_RETRY_SECONDS)               # it may be done again from its start
        damages = [damage for damage in log.damages if damage.sequence < facts.sequence and keeps]
        log.facts, log.generation, log.certain = found.facts, found.generation, found.facts.certain
        log.trim_to, log.damages, log.sealed_new = found.facts.log_start, damages, []
        log.reload(
            log_start=found.facts.log_start, log_end=found.log_end, epoch=found.epoch,
            last_append_ms=found.last_append_ms, producers=found.producers, epochs=found.epochs,
            segments=recovery.make_segments(log, found),
        )  # fmt: skip
        for segment in log.segments:
            segment.named, segment.dirty = True, False
        log.checkpoint_due = True                              # for the producers' state and the index
        log.node.note_progress(log)

    def _finish(self, log: ShardLog, facts: ShardFacts) -> recovery.Found:
        bases = [segment.base for segment in log.segments]
        finish_cut(self._disk, log.path, log.generation + 1, facts, bases)
        found = recovery.find_shard(self._disk, log.path, facts.incarnation)
        recovery.recover_shard(
            self._disk, log.path, log.uuid, found, facts.sequence, self._producers_max, self._disk.boot_id()
        )
        return found

    async def _try(self, work: Callable[..., object], *arguments: object) -> Any:
        try:
            return await self._executor.run(work, *arguments)
        except Exception as cause:
            raise self._failed(cause, False) from cause
