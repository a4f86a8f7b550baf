"""What a data directory does by itself: journal files ahead of their use, checkpoints, retention, an eye on the space.

One background task; nothing that is put or read waits for it. Base of `log_directory.LogDirectory`, which opens, closes
and changes shards. Read `_tend_once` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from streamkit._core.journal import Journal
from streamkit._core.log import NodeLog, Segment
from streamkit.errors import DiskFailed, DiskFull
from streamkit.runtime.interfaces import Disk, File, Flusher, Runtime
from streamkit.storage import journal_files
from streamkit.storage.changes import Changes
from streamkit.storage.checkpoint import Snapshot, SyncFailed, take_snapshot, write_checkpoint, write_super
from streamkit.storage.config import StorageConfig
from streamkit.storage.disk_errors import FULL, FULL_RETRY_SECONDS
from streamkit.storage.shard_log import ShardLog

logger = logging.getLogger("streamkit.storage")
_JOURNAL_GROWTH = 8                # each journal file is so much larger than the one before, up to what is configured
_FORBIDDEN = (1, 13, 30)           # EPERM, EACCES, EROFS
_TEND_SECONDS = 1.0
_SPARES = 2


class Tended:
    """The part of a LogDirectory that works in the background. Its attributes are set by LogDirectory.__init__."""

    path: str
    config: StorageConfig
    node_id: bytes
    shards: dict[bytes, ShardLog]
    on_durable: list[Callable[[], None]]
    on_failed: list[Callable[[Exception], None]]
    checkpoints: int
    _runtime: Runtime
    _disk: Disk
    _loop: asyncio.AbstractEventLoop
    _journal: Journal
    _node: NodeLog
    _flusher: Flusher | None
    _changes: Changes
    _failure: DiskFailed | None
    _full: DiskFull | None
    _closing: bool
    _old_journals: list[File]
    _file_number: int
    _moved: asyncio.Event
    _work: asyncio.Event
    _trims: dict[bytes, ShardLog]
    _naming: set[asyncio.Task[None]]
    _preparing: asyncio.Task[None] | None
    _checkpoint_at_ms: int | None
    _checkpoint_now: bool

    # ---- moving and failing -----------------------------------------------------------------------------------

    def _pushed(self) -> None:
        # Called by the first append of a loop turn: the rest of the turn's appends join its group.
        if self._checkpoint_at_ms is None:
            self._checkpoint_at_ms = self._runtime.clock.monotonic_ms() + self.config.checkpoint_ms
        self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._node.pushed = False
        if self._node.unmarked:
            self._mark_memory()
        if self._flusher is not None:
            self._flusher.wake()

    def _progressed(self) -> None:
        moved = self._node.collect()
        if self._journal.failed is not None and self._failure is None:
            errno, path = self._journal.failed
            self._fail(OSError(errno, "write or sync failed", path))
        if self._journal.stalled or self._journal.starved or self._wants_files():
            self._work.set()
        self._moved.set()
        self._moved.clear()
        if moved:
            for callback in self.on_durable:
                callback()

    async def _next_move(self) -> None:
        try:
            await asyncio.wait_for(self._moved.wait(), 0.05)
        except TimeoutError:
            return

    async def _settle(self, log: ShardLog) -> None:
        """Until the flusher is done with what was appended to the log. Raises DiskFull, DiskFailed."""
        while log.segment_end < log.log_end:
            if self._failure is not None:
                raise self._failure
            if self._journal.stalled:
                raise self._full or self._disk_error(OSError(28, "no space left on device"))
            await self._prepare_journal()
            self._wake()
            await self._next_move()

    def _change_failed(self, cause: Exception, final: bool) -> Exception:
        """The error to raise. final: nothing can be said of the disk any more, whatever it was."""
        if isinstance(cause, SyncFailed) or (final and isinstance(cause, OSError)):
            error = cause.__cause__ if isinstance(cause, SyncFailed) else cause
            self._fail(error if isinstance(error, OSError) else OSError(5, str(cause)))
            assert self._failure is not None, "just set"
            return self._failure
        return self._disk_error(cause) if isinstance(cause, OSError) else cause

    def _mark_memory(self) -> None:
        logs = self._node.take_unmarked()
        task = self._loop.create_task(self._marked_memory(logs), name="storage.memory")
        self._naming.add(task)
        task.add_done_callback(self._naming.discard)

    async def _marked_memory(self, logs: list[ShardLog]) -> None:
        while self._failure is None:
            try:
                await self._changes.mark_memory(logs)
            except DiskFull:
                if self._closing:
                    return
                self._set_full(0)
                await asyncio.sleep(FULL_RETRY_SECONDS)
            except DiskFailed as failure:
                self._fail(OSError(5, str(failure), self.path))
            else:
                for callback in self.on_durable:
                    callback()
                return

    def _fail(self, cause: OSError) -> None:
        if self._failure is not None:
            return
        self._failure = DiskFailed(
            f"the disk failed under {cause.filename or self.path}: {cause.strerror}; nothing more is acknowledged",
            try_="look at the disk, then restart the node: what was acknowledged is recovered",
            path=str(cause.filename or self.path), errno=cause.errno,
        )  # fmt: skip
        logger.error("disk.failed", extra={"facts": dict(self._failure.facts)})
        failure = self._failure
        self._node.refusal = lambda: failure
        for callback in self.on_failed:
            callback(failure)
        for durable in self.on_durable:
            durable()

    def _disk_error(self, cause: Exception) -> Exception:
        error = cause.__cause__ if isinstance(cause, SyncFailed) else cause
        number = getattr(error, "errno", None) or 5
        if number in FULL and not isinstance(cause, SyncFailed):
            return DiskFull(f"no space left under {self.path}", try_="free space or add a disk",
                            free_bytes=0, floor_bytes=self.config.free_bytes_min, path=self.path)  # fmt: skip
        if number in _FORBIDDEN:
            place, why = getattr(error, "filename", None) or self.path, getattr(error, "strerror", None) or str(error)
            return DiskFailed(f"{place} cannot be used: {why.lower()}",
                              try_="let this user read and write everything in the data directory, or run as its owner",
                              path=str(place), errno=number)  # fmt: skip
        return DiskFailed(f"the disk failed under {self.path}: {error}", try_="look at the disk, then restart the node",
                          path=self.path, errno=number)  # fmt: skip

    # ---- tending ----------------------------------------------------------------------------------------------

    def _wants_files(self) -> bool:
        _, position, size, spares = self._journal.place
        return self._preparing is None and spares == 0 and position > size // 4

    async def _tend(self) -> None:
        """Everything that is not urgent, one thing after the other, until close()."""
        while not self._closing and self._failure is None:
            try:
                await self._tend_once()
            except SyncFailed as cause:
                error = cause.__cause__
                self._fail(error if isinstance(error, OSError) else OSError(5, str(cause)))
            except OSError as cause:
                if cause.errno in FULL:
                    if self._journal.starved:
                        self._give_up_reserve()
                    self._set_full(0)
                else:
                    self._fail(cause)
            if self._journal.starved or (self._wants_files() and self._full is None):
                await asyncio.sleep(0.001 if self._full is None else 0.05)
                continue
            try:
                await asyncio.wait_for(self._work.wait(), _TEND_SECONDS)
            except TimeoutError:
                continue
            finally:
                self._work.clear()

    async def _tend_once(self) -> None:
        run = self._runtime.executor.run
        await self._prepare_journal()
        await self._watch_space()
        retired = self._journal.collect_retired()
        if retired:
            self._old_journals += [file for file, _ in retired]
        due = self._checkpoint_at_ms is not None and self._runtime.clock.monotonic_ms() >= self._checkpoint_at_ms
        if due or self._checkpoint_now or self._old_journals:
            self._checkpoint_now = False
            await self._checkpoint(everything=False)
        trims, self._trims = self._trims, {}
        for shard in trims.values():
            if not shard.dropped:
                await self._trim(shard, run)

    async def _prepare_journal(self) -> None:
        """Begin the next journal file when it will be needed. Raises OSError: what the last one came to."""
        task = self._preparing
        if task is not None and task.done():
            self._preparing = None
            task.result()
        if self._wants_files() or (self._journal.starved and self._preparing is None):
            self._preparing = self._loop.create_task(self._make_journal(), name="storage.journal")
            self._preparing.add_done_callback(self._prepared)

    def _prepared(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()                                   # whoever prepares next raises it
        self._work.set()

    async def _make_journal(self) -> None:
        config = self.config
        _, _, size, _ = self._journal.place
        smallest = min(config.journal_bytes, max(2 * config.group_bytes_max, 2 * config.batch_bytes_max))
        size = min(config.journal_bytes, max(size * _JOURNAL_GROWTH, smallest))
        if self._disk.free_bytes(self.path) < config.free_bytes_min + 2 * size:
            size = smallest                                    # growth is a luxury; on a small disk it would fill it
        self._file_number += 1
        number = self._file_number
        file = await journal_files.create_ahead(
            self._disk, self._runtime.executor, f"{self.path}/journal", number, self.node_id, size,
            step=config.journal_step_bytes, hurry=self._short_of_journal,
            unwanted=lambda: self._closing and self._journal.idle,
        )  # fmt: skip
        if file is not None:
            self._journal.add_spare(file, number, size)
            self._wake()

    def _short_of_journal(self) -> bool:
        _, position, size, _ = self._journal.place
        return self._closing or self._journal.starved or position > size // 4 * 3

    async def _watch_space(self) -> None:
        free = self._disk.free_bytes(self.path)
        if self._journal.stalled:
            if self._full is not None:
                await asyncio.sleep(FULL_RETRY_SECONDS)       # it was full a moment ago as well
            self._give_up_reserve()
            self._set_full(free)
            self._journal.resume()
            if self._flusher is not None:
                self._flusher.wake()
        elif free < self.config.free_bytes_min:
            self._set_full(free)
        elif self._full is not None and self._failure is None and not self._closing:
            if free < self.config.free_bytes_min + self.config.reserve_bytes:
                return
            await self._runtime.executor.run(self._make_reserve)
            self._full = None
            self._node.refusal = None
            logger.info("disk.space_again", extra={"facts": {"path": self.path, "free_bytes": free}})

    def _set_full(self, free: int) -> None:
        if self._failure is not None or self._closing:
            return
        if self._full is None:
            logger.warning("disk.full", extra={"facts": {"path": self.path, "free_bytes": free}})
        floor = self.config.free_bytes_min
        full = DiskFull(
            f"{self.path} has {free >> 20} MiB free; puts are refused below {floor >> 20} MiB",
            try_="free space or add a disk; reads go on, and puts once there is room",
            free_bytes=free, floor_bytes=floor, path=self.path,
        )  # fmt: skip
        self._full = full
        self._node.refusal = lambda: full

    def _make_reserve(self) -> None:
        """A file that is removed when the disk is full, so that batches already taken in can land."""
        path, size = f"{self.path}/reserve", self.config.reserve_bytes
        if size == 0 or self._disk.free_bytes(self.path) < self.config.free_bytes_min + size:
            return
        file = self._disk.open(path, create=True)
        try:
            if file.size() < size:
                journal_files.zero(file, file.size(), size)
                file.sync()
        except OSError as cause:
            if cause.errno not in FULL:
                raise
        finally:
            file.close()

    def _give_up_reserve(self) -> None:
        if self._disk.exists(f"{self.path}/reserve"):
            self._disk.remove(f"{self.path}/reserve")

    async def _checkpoint(self, *, everything: bool) -> None:
        """Sync what was written, so that journal files before it are free. Raises OSError, SyncFailed."""
        async with self._changes.turn:
            await self._make_checkpoint(everything)

    async def _make_checkpoint(self, everything: bool) -> None:
        self._checkpoint_at_ms = None
        freed, self._old_journals = self._old_journals, []
        snapshots = [take_snapshot(shard) for shard in self.shards.values() if shard.checkpoint_due]
        try:
            for snapshot in snapshots:
                while snapshot.shard.segment_end < snapshot.sequence and not snapshot.shard.dropped:
                    if self._failure is not None or (self._journal.stalled and not everything):
                        raise OSError(28 if self._failure is None else 5, "the flusher stopped")
                    await self._prepare_journal()
                    self._wake()
                    await self._next_move()
            snapshots = [snapshot for snapshot in snapshots if not snapshot.shard.dropped]
            for snapshot in snapshots:
                for segment in snapshot.segments:
                    segment.dirty = False
            await self._runtime.executor.run(write_checkpoint, self._disk, self.path, snapshots)
        except BaseException:
            self._old_journals = freed + self._old_journals
            for snapshot in snapshots:
                self._take_back(snapshot)
            raise
        for snapshot in snapshots:
            self._apply(snapshot)
        self.checkpoints += 1
        await self._free_journals(freed)
        if snapshots:
            for callback in self.on_durable:
                callback()

    def _take_back(self, snapshot: Snapshot) -> None:
        shard = snapshot.shard
        shard.checkpoint_due = True
        shard.sealed_new = [
            segment for segment in shard.segments
            if segment.measured and any(sealed.path == shard.segment_path(segment) for sealed in snapshot.sealed)
        ] + shard.sealed_new  # fmt: skip
        for segment in snapshot.segments:
            segment.dirty = True

    def _apply(self, snapshot: Snapshot) -> None:
        shard = snapshot.shard
        shard.facts, shard.generation = snapshot.facts, snapshot.generation
        shard.synced_end = max(shard.synced_end, snapshot.sequence)
        self._node.note_progress(shard)
        for segment in snapshot.segments:
            segment.named = True
        self._drop_segments(shard, snapshot.log_start)

    def _drop_segments(self, shard: ShardLog, log_start: int) -> None:
        if log_start > shard.log_start:
            for path in shard.drop_segments(log_start):
                if self._disk.exists(path):
                    self._disk.remove(path)

    async def _free_journals(self, files: list[File]) -> None:
        """Journal files whose content is in synced segments: spares again, or gone when there are enough."""
        size, directory = self.config.journal_bytes, f"{self.path}/journal"
        for file in files:
            spares = self._journal.place[3]
            if spares < _SPARES and file.size() == size and not self._closing:
                self._file_number += 1
                number = self._file_number
                again = await self._runtime.executor.run(
                    journal_files.renumber, self._disk, directory, file, number, self.node_id, size
                )
                self._journal.add_spare(again, number, size)
                self._wake()
            else:
                file.close()
                self._disk.remove(file.path)

    async def _settled(self, shard: ShardLog, sequence: int, durable: bool) -> bool:
        """Waits until what is before `sequence` is in its file, and durable if asked. False: it will not come."""
        while shard.segment_end < sequence or (durable and shard.durable_end < sequence):
            if self._failure is not None or shard.dropped or (self._closing and self._journal.stalled):
                return False
            if self._closing and self._journal.idle:
                # What was appended without asking for a sync gets none before the last checkpoint, which waits for us.
                self._node.collect()
                return shard.segment_end >= sequence and (not durable or shard.durable_end >= sequence)
            await self._next_move()
        return self._failure is None

    def _want_name(self, shard: ShardLog, segment: Segment) -> None:
        task = self._loop.create_task(self._settle_name(shard, segment), name="storage.name")
        self._naming.add(task)
        task.add_done_callback(self._naming.discard)

    async def _settle_name(self, shard: ShardLog, segment: Segment) -> None:
        if shard.dropped or self._failure is not None:
            return
        try:
            await self._runtime.executor.run(self._disk.sync_directory, shard.path)
            segment.named = True
        except OSError as cause:
            if not shard.dropped:
                self._fail(cause)

    def _want_trim(self, shard: ShardLog) -> None:
        self._trims[shard.uuid] = shard
        self._work.set()

    async def _trim(self, shard: ShardLog, run: Callable[..., object]) -> None:
        """log_start goes to disk first, then the segments before it go."""
        async with self._changes.turn:
            if shard.dropped or shard.trim_to <= shard.log_start:
                return
            facts = replace(shard.facts, log_start=shard.trim_to)
            generation = shard.generation + 1
            await self._runtime.executor.run(write_super, self._disk, shard.path, facts, generation)
            shard.facts, shard.generation = facts, generation
            self._drop_segments(shard, facts.log_start)
