"""A checkpoint: what was written to segments is synced, and each shard's `super` says how far.

    snapshot (loop) ─ the flusher has written that much ─▶ write (other thread) ─▶ applied (loop) ─▶ journal files free

Order on disk: trailers and segments; producers' state, index and epochs; `super`; each synced before the next.
A crash between any two leaves the older `super`, whose claims still hold.

    epochs:  "SKE1", crc u32 of the rest, then (epoch u32, start sequence u64)*, little-endian
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from streamkit._core.files import crc32c
from streamkit._core.log import Segment
from streamkit._core.segment import make_trailer
from streamkit.runtime.interfaces import Disk
from streamkit.storage.shard_log import ShardLog
from streamkit.storage.super_slots import ShardFacts, write_slot

SYNC_ALL_FILES = 32                # from so many files on, one syncfs is cheaper than a sync each


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A segment that gets its trailer."""

    path: str
    position: int
    trailer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One shard at one moment; nothing here changes while another thread writes it."""

    shard: ShardLog
    sequence: int                  # the flusher must have written up to here before the rest is true
    facts: ShardFacts
    generation: int
    sealed: tuple[Sealed, ...]
    segments: tuple[Segment, ...]  # that may hold unsynced bytes
    files: tuple[tuple[str, bytes], ...]       # small files replaced as a whole: path, content
    log_start: int


class SyncFailed(Exception):
    """A sync reported an error: what is on disk is not known any more. `__cause__` is the OSError."""


def take_snapshot(shard: ShardLog) -> Snapshot:
    """On the loop. Clears checkpoint_due; the shard is marked again by whatever comes later."""
    shard.checkpoint_due = False
    sealed, shard.sealed_new = shard.sealed_new, []
    last = shard.segments[-1] if shard.segments else None
    # A last segment that takes nothing more may lack records at its end, for which its place is kept: the log goes on
    # in another one, also after a restart.
    active = last if last is not None and not last.sealed else None
    facts = replace(
        shard.facts,
        certain=shard.certain,
        memory_mode=shard.facts.memory_mode or shard.os_end > shard.synced_end,
        damaged=shard.facts.damaged or bool(shard.damages),
        has_producers=len(shard.producers) > 0,
        log_start=shard.trim_to,
        sequence=shard.log_end,
        segment_base=active.base if active else shard.log_end,
        position=active.position if active else 0,
        batches=active.batches if active else 0,
        first_append_ms=active.first_append_ms if active else 0,
        headers_crc=active.headers_crc if active else 0,
        last_append_ms=shard.last_append_ms,
        epoch=shard.epoch,
        promised_epoch=shard.promised_epoch,
        closing_end=shard.closing_end if shard.closing is not None else 0,
    )
    files = [(f"{shard.path}/epochs", pack_epochs(shard.epochs))]
    if last is not None and len(shard.producers):
        files.append((shard.segment_path(last, ".psn"), shard.producers.to_bytes(last.position, shard.log_end)))
    for segment in (*sealed, *([last] if last is not None else [])):
        if segment.index_whole and len(segment.index):
            files.append((shard.segment_path(segment, ".idx"), segment.index.to_bytes()))
    return Snapshot(
        shard=shard,
        sequence=shard.log_end,
        facts=facts,
        generation=shard.generation + 1,
        sealed=tuple(make_sealed(shard, segment) for segment in sealed if segment.measured),
        segments=tuple(segment for segment in shard.segments if segment.dirty or segment.in_flight),
        files=tuple(files),
        log_start=shard.trim_to,
    )


def make_sealed(shard: ShardLog, segment: Segment) -> Sealed:
    """The trailer of a segment that takes nothing more."""
    trailer = make_trailer(
        shard.seed, base=segment.base, end=segment.end, bytes=segment.position, batches=segment.batches,
        first_append_ms=segment.first_append_ms, last_append_ms=segment.last_append_ms, headers_crc=segment.headers_crc,
    )  # fmt: skip
    return Sealed(path=shard.segment_path(segment), position=segment.position, trailer=trailer)


def write_checkpoint(disk: Disk, root: str, snapshots: list[Snapshot]) -> None:
    """On another thread, once the flusher has written what the snapshots need. Raises OSError, SyncFailed."""
    touched: dict[str, None] = {}
    for snapshot in snapshots:
        for segment in snapshot.segments:
            touched[snapshot.shard.segment_path(segment)] = None
        for sealed in snapshot.sealed:
            touched[sealed.path] = None
            _write(disk, sealed.path, sealed.position, sealed.trailer)
    many = len(touched) > SYNC_ALL_FILES or len(snapshots) > SYNC_ALL_FILES
    if not many:
        for path in touched:
            _sync_file(disk, path)
    made: list[str] = []
    for snapshot in snapshots:
        for path, content in snapshot.files:
            replace_file(disk, path, content, sync=not many)
            made.append(path)
    if many:
        sync_all(disk, root)
    else:
        for directory in {snapshot.shard.path: None for snapshot in snapshots}:
            _sync_names(disk, directory)
    for snapshot in snapshots:
        write_super(disk, snapshot.shard.path, snapshot.facts, snapshot.generation, sync=not many)
    if many:
        sync_all(disk, root)


def write_super(disk: Disk, directory: str, facts: ShardFacts, generation: int, *, sync: bool = True) -> None:
    """Raises OSError, SyncFailed."""
    file = disk.open(f"{directory}/super", create=True)
    try:
        write_slot(file, generation, facts.to_bytes())
        if sync:
            try:
                file.sync()
            except OSError as cause:
                raise SyncFailed(file.path) from cause
    finally:
        file.close()


def replace_file(disk: Disk, path: str, content: bytes, *, sync: bool = True, new: str = ".new") -> None:
    """All of the new content or all of the old, once the directory is synced too. Raises OSError, SyncFailed.

    new: suffix of the file on its way; writers that may meet at one path each have their own.
    """
    file = disk.open(path + new, create=True)
    try:
        file.truncate(0)
        file.write([content], 0)
        if sync:
            try:
                file.sync()
            except OSError as cause:
                raise SyncFailed(path) from cause
    finally:
        file.close()
    disk.rename(path + new, path)


def sync_all(disk: Disk, root: str) -> None:
    """Raises SyncFailed."""
    try:
        disk.sync_all(root)
    except OSError as cause:
        raise SyncFailed(root) from cause


def _write(disk: Disk, path: str, position: int, content: bytes) -> None:
    file = disk.open(path)
    try:
        file.write([content], position)
    finally:
        file.close()


def _sync_file(disk: Disk, path: str) -> None:
    if not disk.exists(path):
        return                                                 # retention took it meanwhile
    file = disk.open(path)
    try:
        file.sync()
    except OSError as cause:
        raise SyncFailed(path) from cause
    finally:
        file.close()


def _sync_names(disk: Disk, directory: str) -> None:
    try:
        disk.sync_directory(directory)
    except OSError as cause:
        raise SyncFailed(directory) from cause


def pack_epochs(epochs: list[tuple[int, int]]) -> bytes:
    body = b"".join(struct.pack("<IQ", epoch, start) for epoch, start in epochs)
    return b"SKE1" + struct.pack("<I", crc32c(body)) + body


def unpack_epochs(data: bytes) -> list[tuple[int, int]] | None:
    """None when `data` is not a sound epochs file."""
    if len(data) < 8 or data[:4] != b"SKE1" or (len(data) - 8) % 12:
        return None
    if crc32c(data[8:]) != int.from_bytes(data[4:8], "little"):
        return None
    return [struct.unpack_from("<IQ", data, at) for at in range(8, len(data), 12)]
