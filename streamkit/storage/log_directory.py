"""A node's data directory: its lock and identity, its journal, the logs of its shards, and what keeps them going.

    data/node.id   data/lock   data/super   data/cluster   data/pledges   data/reserve
    data/journal/<number>.jrn   data/shards/<uuid hex>/…

Here it is opened and closed, and shards come and go; `tending` is what it does by itself, `changes` what happens to a
copy besides appends. Called by the node; the broker uses `shards` and `take_progressed`. Read `open`, then `_recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from streamkit._core.journal import Journal
from streamkit._core.log import NodeLog
from streamkit._core.producers import ProducerTable
from streamkit.errors import Closed, DiskFailed, DiskFull
from streamkit.runtime.interfaces import Buffer, Disk, Executor, File, Flusher, Lock, Runtime
from streamkit.storage import identity, journal_files, recovery
from streamkit.storage.changes import Changes, NewShard
from streamkit.storage.checkpoint import (
    SYNC_ALL_FILES,
    SyncFailed,
    sync_all,
    write_super,
)
from streamkit.storage.config import StorageConfig
from streamkit.storage.disk_errors import FULL
from streamkit.storage.flusher import GroupCommit
from streamkit.storage.identity import ClusterFacts
from streamkit.storage.marks import Marks
from streamkit.storage.pledges import Pledged, Pledges, read_pledges
from streamkit.storage.shard_log import Damage, ShardLog
from streamkit.storage.super_slots import NodeFacts, ShardFacts
from streamkit.storage.tending import Tended

logger = logging.getLogger("streamkit.storage")
_FIRST_JOURNAL_BYTES = 2 << 20          # the first file of a start is small: most have little to write


class LogDirectory(Tended):
    """Open with `await LogDirectory.open(...)`, end with `await close()`.

    shards: uuid → ShardLog. read_only: why puts are refused, or None. damages: of all shards, found at open or later.
    on_durable: called on the loop, without arguments, when shards moved; ask take_progressed() which.
    on_failed: called once, with the error, when the disk failed for good.
    """

    def __init__(self, path: str, runtime: Runtime, config: StorageConfig) -> None:
        self.path = path
        self.config = config
        self.node_id = self.disk_id = b""
        self.cluster: ClusterFacts | None = None
        self.shards: dict[bytes, ShardLog] = {}
        self.on_durable: list[Callable[[], None]] = []
        self.on_failed: list[Callable[[Exception], None]] = []
        self.recovered = recovery.Replay()
        self.was_clean = True
        self.checkpoints = 0
        self._runtime = runtime
        self._disk: Disk = runtime.disk
        self._lock: Lock | None = None
        self._failure: DiskFailed | None = None
        self._full: DiskFull | None = None
        self._closing = False
        self._old_journals: list[File] = []                  # not needed once the checkpoint after it is done
        self._file_number = 0
        self._node_generation = self._cluster_generation = 0
        self._moved = asyncio.Event()
        self._work = asyncio.Event()
        self._trims: dict[bytes, ShardLog] = {}
        self._naming: set[asyncio.Task[None]] = set()        # syncs of new segments' names under way
        self._preparing: asyncio.Task[None] | None = None    # a journal file being made
        self._checkpoint_at_ms: int | None = None
        self._checkpoint_now = False
        self._tender: asyncio.Task[None] | None = None
        self._flusher: Flusher | None = None

    # ---- open and close ---------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, path: str, *, runtime: Runtime, config: StorageConfig | None = None) -> LogDirectory:
        """Lock the directory, recover what an earlier process left, and start the flusher.

        Raises DataDirectoryLocked, CorruptFile (the directory's identity is unreadable), DiskFull, DiskFailed.
        """
        directory = cls(path, runtime, config or StorageConfig())
        try:
            try:
                await runtime.executor.run(directory._recover)
            except OSError as cause:
                if cause.errno not in FULL or not runtime.disk.exists(f"{path}/reserve"):
                    raise
                directory._release_lock()
                runtime.disk.remove(f"{path}/reserve")       # kept for this: recovery is idempotent, so once more
                directory.shards.clear()
                await runtime.executor.run(directory._recover)
        except (OSError, SyncFailed) as cause:
            directory._release_lock()
            raise directory._disk_error(cause) from cause
        except BaseException:
            directory._release_lock()
            raise
        directory._start()
        return directory

    def _recover(self) -> None:
        disk, config = self._disk, self.config
        identity.make_root(disk, self.path)
        self._lock = disk.lock(f"{self.path}/lock")
        disk.make_directory(f"{self.path}/journal")
        disk.make_directory(f"{self.path}/shards")
        self.node_id, self.disk_id = identity.identify(disk, self.path, self._runtime.random)
        self._node_generation, node = identity.read_node_facts(disk, self.path)
        self._cluster_generation, self.cluster = identity.read_cluster(disk, self.path)
        boot_id = disk.boot_id()
        self._marks = Marks(disk, self._runtime.executor, boot_id, self._settled)
        same_boot = node is not None and node.boot_id == boot_id
        self.was_clean = node is None or node.clean
        found: dict[bytes, tuple[str, recovery.Found]] = {}
        for name in disk.list(f"{self.path}/shards"):
            path = f"{self.path}/shards/{name}"
            try:
                uuid = bytes.fromhex(name)
            except ValueError:
                uuid = b""
            if len(uuid) != 16:
                logger.warning("shard.stray", extra={"facts": {"path": path}})
                continue
            found[uuid] = (path, recovery.find_shard(disk, path, self._runtime.random.uuid()))
        pledged = self._hear_pledges(found)
        replay = recovery.replay_journal(disk, f"{self.path}/journal", found, same_boot=same_boot)
        self.recovered = replay
        power_lost = not self.was_clean and not same_boot
        self._doubt(found, pledged.lost, power_lost)
        self._write_node_facts(NodeFacts(boot_id=boot_id, clean=False))
        self._make_node_log(replay)
        self._make_changes(pledged)
        for uuid, (path, shard) in found.items():
            durable = replay.durable.get(uuid, 0)
            recovery.recover_shard(disk, path, uuid, shard, durable, config.producers_max, boot_id)
            self._adopt(uuid, path, shard, durable)
        self._open_journal(replay)
        self._make_reserve()

    def _hear_pledges(self, found: dict[bytes, tuple[str, recovery.Found]]) -> Pledged:
        """What was pledged counts beside what each `super` says."""
        pledged = read_pledges(self._disk, self.path, expected=self.cluster is not None)
        for uuid, (_, shard) in found.items():
            facts = replace(
                shard.facts, promised_epoch=max(shard.facts.promised_epoch, pledged.promises.get(uuid, 0)),
                memory_mode=shard.facts.memory_mode or uuid in pledged.memory,
            )  # fmt: skip
            shard.facts = facts
        if pledged.lost:
            logger.error("pledges.damaged", extra={"facts": {"path": self.path, "shards": len(found)}})
        return pledged

    def _doubt(self, found: dict[bytes, tuple[str, recovery.Found]], pledges_lost: bool, power_lost: bool) -> None:
        """On disk before the directory counts as opened under this boot: the reasons are not seen a second time."""
        doubtful: list[tuple[str, recovery.Found]] = []
        for uuid, (path, shard) in found.items():
            lost = pledges_lost or (shard.facts.memory_mode and power_lost)
            if lost or uuid in self.recovered.doubtful:
                torn = not lost and (shard.facts.certain or shard.facts.doubtful)
                shard.facts = replace(shard.facts, certain=False, doubtful=torn)
                doubtful.append((path, shard))
        many = len(doubtful) > SYNC_ALL_FILES
        for path, shard in doubtful:
            shard.generation += 1
            shard.changed = True
            write_super(self._disk, path, shard.facts, shard.generation, sync=not many)
        if many:
            sync_all(self._disk, self.path)

    def _make_changes(self, pledged: Pledged) -> None:
        self._changes = Changes(
            disk=self._disk, executor=self._runtime.executor, root=self.path, producers_max=self.config.producers_max,
            journal=self._journal, marks=self._marks,
            pledges=Pledges(self._disk, self._runtime.executor, self.path, pledged),
            settle=self._settle, failed=self._change_failed, apply=self._apply, take_back=self._take_back,
        )  # fmt: skip

    def _write_node_facts(self, facts: NodeFacts) -> None:
        self._node_generation += 1
        identity.write_node_facts(self._disk, self.path, self._node_generation, facts)

    def _adopt(self, uuid: bytes, path: str, found: recovery.Found, durable: int) -> None:
        log = self._make_log(uuid, path, found.facts, found.generation, found)
        log.take_segments(recovery.make_segments(log, found))
        log.damages += found.damages
        log.sealed_new += [
            segment for segment, facts in zip(log.segments[:-1], found.segments, strict=False)
            if segment.measured and not facts.get("sealed")
        ]  # fmt: skip
        log.checkpoint_due = found.changed
        closing = recovery.read_closing(self._disk, path, uuid, found)
        if closing is not None:
            log.find_closing(closing, found.closing_end)
        vouched = found.synced or found.log_end <= max(durable, found.facts.sequence)
        log.restore_ends(found.facts.sequence, not vouched)
        self.shards[uuid] = log

    def _make_log(
        self, uuid: bytes, path: str, facts: ShardFacts, generation: int, found: recovery.Found | None = None
    ) -> ShardLog:
        return ShardLog(
            self._node, uuid, disk=self._disk, executor=self._runtime.executor, on_roll=self._marks.rolled,
            on_name=self._want_name, on_trim=self._want_trim, path=path,
            facts=facts, generation=generation,
            log_end=found.log_end if found else facts.sequence,
            epoch=found.epoch if found else 0,
            last_append_ms=found.last_append_ms if found else 0,
            producers=found.producers if found else ProducerTable(self.config.producers_max),
            epochs=found.epochs if found else [],
        )  # fmt: skip

    def _make_node_log(self, replay: recovery.Replay) -> None:
        config = self.config
        self._journal = Journal(
            bypass_bytes=config.bypass_bytes, group_bytes_max=config.group_bytes_max,
            group_number=replay.group_number + 1, previous_crc=0,
        )  # fmt: skip
        self._node = NodeLog(
            self._journal, tail_bytes_max=config.tail_bytes, segment_bytes=config.segment_bytes,
            bypass_bytes=config.bypass_bytes, batch_bytes_max=config.batch_bytes_max,
            unnamed_bytes_max=config.journal_bytes // 2, files_open_max=config.files_open_max,
        )  # fmt: skip
        self._node.on_push = self._pushed

    def _open_journal(self, replay: recovery.Replay) -> None:
        disk, directory, size = self._disk, f"{self.path}/journal", self.config.journal_bytes
        self._old_journals = [
            disk.open(f"{directory}/{name}") for name in disk.list(directory) if name.endswith(journal_files.SUFFIX)
        ]
        self._file_number = replay.file_number + 1
        size = min(size, _FIRST_JOURNAL_BYTES)
        file = journal_files.create(disk, directory, self._file_number, self.node_id, size)
        self._journal.start_file(file, self._file_number, size)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._flusher = self._disk.start_flusher(GroupCommit(self._journal), self._progressed)
        if self._old_journals or self.shards:      # with shards and no journal, someone removed it: settle all the same
            self._checkpoint_now = True
        self._tender = loop.create_task(self._tend(), name="storage.tend")

    async def close(self) -> None:
        """Flush and sync everything, leave the clean mark, release the directory. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        self._node.refusal = lambda: Closed("the log is closed", try_="open it again", what=self.path)
        while not (self._journal.idle or self._failure or self._journal.stalled):
            try:
                await self._prepare_journal()
            except OSError as cause:
                logger.error("close.no_journal", extra={"facts": {"path": self.path, "errno": cause.errno}})
                break
            self._wake()
            await self._next_move()
        await self._changes.drained()
        self._work.set()
        if self._tender is not None:
            await self._tender
        if self._naming:
            await asyncio.wait(self._naming)
        await self._marks.drained()
        if self._preparing is not None:
            await asyncio.wait([self._preparing])
        if self._flusher is not None:
            await self._flusher.stop()
        self._node.collect()
        if self._failure is None and self._full is None and self._journal.idle:
            try:
                await self._checkpoint(everything=True)
                await self._runtime.executor.run(
                    self._write_node_facts, NodeFacts(boot_id=self._disk.boot_id(), clean=True)
                )
            except OSError as cause:
                logger.error("close.unclean", extra={"facts": {"path": self.path, "errno": cause.errno}})
        for segment in list(self._node.open_segments):
            if segment.in_flight == 0:
                segment.close_file()
        for file in self._old_journals:
            file.close()
        self._changes.pledges.close()
        self.abandon()
        self._release_lock()

    def abandon(self) -> None:
        """Let go of what is in memory, flushed or not, once nothing runs that could flush it."""
        self._journal.abandon()
        for shard in self.shards.values():
            shard.forget_tail()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---- shards -----------------------------------------------------------------------------------------------

    async def create_shards(self, wanted: Iterable[bytes] | Mapping[bytes, NewShard]) -> None:
        """Make empty logs where there are none; durable when it returns. Raises DiskFull, DiskFailed."""
        async with self._changes.turn:
            if self._node.refusal is not None:
                raise self._node.refusal()
            made = {
                uuid: wanted[uuid] if isinstance(wanted, Mapping) else NewShard(self._runtime.random.uuid())
                for uuid in wanted if uuid not in self.shards
            }  # fmt: skip
            if not made:
                return
            facts = {uuid: shard.facts() for uuid, shard in made.items()}
            try:
                await self._runtime.executor.run(self._write_shards, facts)
            except (OSError, SyncFailed) as cause:
                with contextlib.suppress(OSError):             # else they would be found, and belong to nothing
                    await self._runtime.executor.run(self._remove_shards, [self._shard_path(uuid) for uuid in made])
                raise self._disk_error(cause) from cause
            for uuid in made:
                self.shards[uuid] = self._make_log(uuid, self._shard_path(uuid), facts[uuid], 1)

    def _write_shards(self, facts: dict[bytes, ShardFacts]) -> None:
        many = len(facts) > 16
        for uuid, shard in facts.items():
            path = self._shard_path(uuid)
            self._disk.make_directory(path)
            write_super(self._disk, path, shard, 1, sync=not many)
            if not many:
                self._disk.sync_directory(path)
        self._disk.sync_directory(f"{self.path}/shards")
        if many:
            sync_all(self._disk, self.path)

    def _shard_path(self, uuid: bytes) -> str:
        return f"{self.path}/shards/{uuid.hex()}"

    async def drop_shards(self, uuids: Iterable[bytes]) -> None:
        """Remove logs with everything in them; unknown ones are no error."""
        gone = [self.shards.pop(uuid) for uuid in uuids if uuid in self.shards]
        for shard in gone:
            shard.dropped = True
        async with self._changes.turn:
            for shard in gone:
                while shard.segment_end < shard.log_end and self._failure is None and not self._journal.stalled:
                    await self._prepare_journal()
                    self._wake()
                    await self._next_move()
                for segment in shard.segments:
                    if segment.in_flight == 0:
                        segment.close_file()
                shard.forget_tail()
            try:
                await self._runtime.executor.run(self._remove_shards, [shard.path for shard in gone])
            except OSError as cause:
                raise self._disk_error(cause) from cause
            self._changes.pledges.forget(shard.uuid for shard in gone)     # not before: it could come back without them

    def _remove_shards(self, paths: list[str]) -> None:
        for path in paths:
            if self._disk.exists(path):
                self._disk.remove_directory(path)
        self._disk.sync_directory(f"{self.path}/shards")

    # ---- what else happens to a copy's log: see `changes` -----------------------------------------------------

    async def promise(self, epochs: Mapping[bytes, int]) -> None:
        """Shards' promised_epoch rises to these, on disk when it returns; it never falls. Unknown ones are passed over.

        Raises DiskFull, DiskFailed.
        """
        await self._changes.whole(self._changes.promise(
            {self.shards[uuid]: epoch for uuid, epoch in epochs.items() if uuid in self.shards}
        ))

    async def set_certain(self, log: ShardLog, certain: bool) -> None:
        await self._changes.whole(self._changes.set_certain(log, certain))

    async def truncate(self, log: ShardLog, sequence: int) -> None:
        await self._changes.whole(self._changes.truncate(log, sequence))

    async def reset(self, log: ShardLog, *, start: int, incarnation: bytes) -> None:
        await self._changes.whole(self._changes.reset(log, start=start, incarnation=incarnation))

    async def repair(self, log: ShardLog, damage: Damage, batches: Buffer | Iterable[Buffer]) -> bool:
        return await self._changes.whole(self._changes.repair(log, damage, batches))

    async def close_segment(self, log: ShardLog, sequence: int) -> tuple[int, int]:
        return await self._changes.whole(self._changes.close_segment(log, sequence))

    async def rewrite(self, log: ShardLog, base: int, batches: Iterable[Buffer]) -> bool:
        return await self._changes.whole(self._changes.rewrite(log, base, batches))

    async def checkpoint(self) -> None:
        """Sync now what would be synced sooner or later. Raises OSError, SyncFailed."""
        await self._checkpoint(everything=False)

    async def sync(self, log: ShardLog, sequence: int) -> None:
        """What is before `sequence` is on disk when it returns, at whatever level it was appended. Raises DiskFailed.

        While the disk is full it waits.
        """
        while log.durable_end < sequence <= log.log_end and not log.dropped:
            if self._failure is not None:
                raise self._failure
            self._checkpoint_now = True
            self._work.set()
            await self._next_move()

    async def write_cluster(self, facts: ClusterFacts) -> None:
        """Where this directory belongs: `cluster` from then on, durable when it returns. Raises DiskFull, DiskFailed"""
        async with self._changes.turn:
            try:
                await self._changes.pledges.begin()
                await self._runtime.executor.run(
                    identity.write_cluster, self._disk, self.path, self._cluster_generation + 1, facts
                )
            except Exception as cause:
                raise self._change_failed(cause, False) from cause
            self._cluster_generation += 1
            self.cluster = facts

    @property
    def tools(self) -> tuple[Disk, Executor]:
        """For a Scrubber."""
        return self._disk, self._runtime.executor

    # ---- progress ---------------------------------------------------------------------------------------------

    def take_progressed(self) -> list[ShardLog]:
        """Shards whose durable_end or written_end moved since the last call, each once."""
        return self._node.take_progressed()

    @property
    def read_only(self) -> str | None:
        """Why puts are refused, or None."""
        error = self._failure or self._full
        return None if error is None else str(error)

    @property
    def failure(self) -> DiskFailed | None:
        """Set once a write or sync failed for good: nothing is acknowledged any more until a restart."""
        return self._failure

    @property
    def damages(self) -> list[Damage]:
        return [damage for shard in self.shards.values() for damage in shard.damages]

    @property
    def pending_bytes(self) -> int:
        """Of batches taken in and not yet in their segments: held in memory whatever the tail's budget."""
        return self._journal.pending_bytes

    @property
    def tail_bytes(self) -> int:
        return self._node.tail_bytes

    @property
    def counts(self) -> dict[str, int]:
        groups, syncs = self._journal.counts
        return {"groups": groups, "syncs": syncs, "batches": self._node.batches_appended,
                "bytes": self._node.bytes_appended, "checkpoints": self.checkpoints}  # fmt: skip
