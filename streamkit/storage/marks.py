"""Marks: where recovery may begin when a process ended and the system it ran on did not.

What was written to a file outlives the process, synced or not. So as soon as a full segment is wholly in its file, it
gets its trailer and index, and a mark says that the log was sound up to the segment after it. Nothing here is synced,
and the mark names the boot: after a loss of power it does not hold, and the checkpoint in `super` does.

    mark.0, mark.1 (written in turn, so that one is whole):
      0   4  magic "SKM2"
      4   4  crc          CRC-32C of bytes 8 .. 200 + both blobs
      8   4  epochs bytes
     12   4  producers bytes
     16  40  boot id (36 ASCII bytes), zero 4
     56 128  facts, as in a shard's `super`; flag 2: what was not synced then includes batches that did not ask for it
    184  16  zero
    200      an `epochs` file, then a `.psn` file, or nothing when there are no producers

A mark counts when its shard and boot are the same, the segment before it has a trailer that ends where the mark begins,
and everything before it is durable, or was in a memory mode: what nobody vouches for is written again from memory, see
`recovery`. Read `Marks.rolled` first.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from streamkit._core.files import crc32c
from streamkit._core.log import Segment
from streamkit._core.producers import ProducerTable
from streamkit._core.segment import TRAILER_SIZE, read_trailer
from streamkit.runtime.interfaces import Disk, Executor
from streamkit.storage.checkpoint import Sealed, make_sealed, pack_epochs, replace_file, unpack_epochs
from streamkit.storage.shard_log import ShardLog
from streamkit.storage.super_slots import SHARD_BYTES, ShardFacts

logger = logging.getLogger("streamkit.storage")
_HEAD = struct.Struct("<4sIII40s128s16x")
_PRODUCERS_MAX = 10_000            # with more, copying their state at each roll would hold up the loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One shard at the moment a segment was full; `segment` is that segment."""

    shard: ShardLog
    segment: Segment
    number: int                    # which of the two files it goes to
    cuts: int                      # of the shard then: once it is cut, the mark is void
    facts: ShardFacts
    sealed: Sealed
    index: bytes
    epochs: bytes
    producers: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkRead:
    """Where recovery may begin: facts, and what was known there."""

    facts: ShardFacts
    epochs: list[tuple[int, int]]
    producers: ProducerTable


def take_mark(shard: ShardLog, segment: Segment) -> Mark | None:
    """On the loop, before anything is appended to the new segment. None: nothing can be said of the full one."""
    if not segment.measured or not segment.index_whole or len(shard.producers) > _PRODUCERS_MAX:
        return None
    facts = replace(
        shard.facts,
        certain=shard.certain,
        memory_mode=shard.os_end > shard.synced_end,
        has_producers=len(shard.producers) > 0,
        log_start=shard.trim_to,
        sequence=shard.log_end,
        segment_base=shard.log_end,
        position=0,
        batches=0,
        first_append_ms=0,
        headers_crc=0,
        last_append_ms=shard.last_append_ms,
        epoch=shard.epoch,
        promised_epoch=shard.promised_epoch,
        closing_end=shard.closing_end if shard.closing is not None else 0,
    )
    shard.marks += 1
    return Mark(
        shard=shard, segment=segment, number=shard.marks % 2, cuts=shard.cuts, facts=facts,
        sealed=make_sealed(shard, segment), index=segment.index.to_bytes(), epochs=pack_epochs(shard.epochs),
        producers=shard.producers.to_bytes(0, shard.log_end) if len(shard.producers) else b"",
    )  # fmt: skip


def write_mark(disk: Disk, mark: Mark, boot_id: str) -> None:
    """On another thread, once everything before the mark is in its file. Raises OSError."""
    segment = disk.open(mark.sealed.path)
    try:
        segment.write([mark.sealed.trailer], mark.sealed.position)
    finally:
        segment.close()
    index_path = mark.sealed.path.removesuffix(".log") + ".idx"
    replace_file(disk, index_path, mark.index, sync=False, new=".mark")       # a checkpoint may be writing it as well
    head = _HEAD.pack(b"SKM2", 0, len(mark.epochs), len(mark.producers), boot_id.encode("ascii")[:36],
                      mark.facts.to_bytes())  # fmt: skip
    rest = head[8:] + mark.epochs + mark.producers
    # In place and not by rename: replacing a file makes some file systems write it out at once.
    file = disk.open(f"{mark.shard.path}/mark.{mark.number}", create=True)
    try:
        file.write([b"SKM2" + struct.pack("<I", crc32c(rest)) + rest], 0)
    finally:
        file.close()


def read_mark(
    disk: Disk, path: str, boot_id: str, seed: int, incarnation: bytes, producers_max: int
) -> MarkRead | None:
    """The newest mark of a shard that holds in this boot, or None. Raises OSError."""
    found = [_read_file(disk, f"{path}/mark.{number}", boot_id, producers_max) for number in (0, 1)]
    sound = [mark for mark in found if mark is not None and mark.facts.incarnation == incarnation]
    for mark in sorted(sound, key=lambda mark: mark.facts.sequence, reverse=True):
        if _ends_at(disk, path, mark.facts.segment_base, seed):
            return mark
    return None


def _read_file(disk: Disk, path: str, boot_id: str, producers_max: int) -> MarkRead | None:
    if not disk.exists(path):
        return None
    file = disk.open(path)
    try:
        data = file.read(file.size(), 0)
    finally:
        file.close()
    if len(data) < _HEAD.size:
        return None
    magic, crc, epochs_bytes, producers_bytes, boot, body = _HEAD.unpack_from(data)
    end = _HEAD.size + epochs_bytes + producers_bytes
    if magic != b"SKM2" or len(data) < end or crc32c(data[8:end]) != crc:
        return None
    if boot.rstrip(b"\0") != boot_id.encode("ascii", "replace")[:36]:
        return None
    assert len(body) == SHARD_BYTES, "the mark's facts have the size of a shard's super"
    facts, at = ShardFacts.from_bytes(body), _HEAD.size + epochs_bytes
    epochs = unpack_epochs(data[_HEAD.size : at])
    table = ProducerTable.from_bytes(data[at:end], producers_max) if producers_bytes else None
    if facts is None or epochs is None or (producers_bytes and table is None):
        return None
    return MarkRead(facts=facts, epochs=epochs, producers=table[0] if table else ProducerTable(producers_max))


def _ends_at(disk: Disk, path: str, base: int, seed: int) -> bool:
    """Whether the segment that begins at `base` is there, and the one before it has a trailer that ends there."""
    names = [name for name in disk.list(path) if name.endswith(".log")]
    place = names.index(f"{base:020d}.log") if f"{base:020d}.log" in names else 0
    if place == 0:
        return False
    file = disk.open(f"{path}/{names[place - 1]}")
    try:
        size = file.size()
        trailer = read_trailer(file.read(TRAILER_SIZE, max(0, size - TRAILER_SIZE)), seed)
    finally:
        file.close()
    return trailer is not None and trailer["end"] == base and trailer["bytes"] + TRAILER_SIZE == size


def remove_marks(disk: Disk, path: str) -> None:
    """The log is going to be cut: no mark of this boot may speak of what was in it. Raises OSError."""
    for number in (0, 1):
        if disk.exists(f"{path}/mark.{number}"):
            disk.remove(f"{path}/mark.{number}")


class Marks:
    """Writes marks in the order of the rolls, one at a time.

    boot_id: of the running system. settled: awaits until everything of a shard before a sequence is in its file, and
    durable if it is to be; False when that will not come.
    """

    def __init__(
        self, disk: Disk, executor: Executor, boot_id: str, settled: Callable[[ShardLog, int, bool], Awaitable[bool]]
    ) -> None:
        self._disk, self._executor, self._boot_id, self._settled = disk, executor, boot_id, settled
        self._waiting: deque[Mark] = deque()
        self._task: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()          # held while a mark is written, and by whoever makes marks void

    def rolled(self, shard: ShardLog, full: Segment) -> None:
        """`full` takes nothing more, and the shard's next batch goes to a new segment."""
        mark = take_mark(shard, full)
        if mark is not None:
            self._waiting.append(mark)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._write(), name="storage.marks")

    async def drained(self) -> None:
        """Returns when no mark waits to be written."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        while self._waiting:
            mark = self._waiting.popleft()
            shard = mark.shard
            if shard.dropped or not await self._settled(shard, mark.facts.sequence, not mark.facts.memory_mode):
                continue
            try:
                async with self.writing:
                    if mark.segment.end <= shard.trim_to or mark.cuts != shard.cuts:
                        continue                               # about to be removed by retention, or cut off
                    await self._executor.run(write_mark, self._disk, mark, self._boot_id)
            except OSError as cause:
                # A mark only saves time. Whether the disk is full or broken is for those to say who must write.
                if not shard.dropped:
                    logger.info("mark.unwritten", extra={"facts": {"path": shard.path, "errno": cause.errno}})
                continue
            mark.segment.dirty = True                          # its trailer is not synced
        self._task = None
