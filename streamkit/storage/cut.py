"""Cutting a log: a follower held batches that its leader's log does not have, or the whole copy begins anew.

    flusher is done with the shard ─▶ segments that stay are synced ─▶ `super`: the log ends here, being cut   ← holds
      ─▶ segments behind the cut go, the one it falls into is shortened ─▶ epochs ─▶ `super`: cut

Up to the first `super` a crash leaves the log as it was; from then on recovery does the rest. That `super` is also a
checkpoint, and names the last journal group that may speak of the shard: what is in the journal up to there is void,
neither replayed nor counted as lost. Runs on another thread than the loop. Read `begin_cut`, then `finish_cut`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamkit._core.index import SparseIndex
from streamkit._core.segment import SHORT, find_batch, walk
from streamkit.runtime.interfaces import Disk, File
from streamkit.storage.checkpoint import (
    Sealed,
    SyncFailed,
    pack_epochs,
    replace_file,
    unpack_epochs,
    write_super,
)
from streamkit.storage.super_slots import ShardFacts

_WINDOW_BYTES = 1 << 20
_HEADER_BYTES = 112


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a log is to end: a batch border, and what a checkpoint there says of the segment it lies in.

    damaged: it lies before where it was to be, because nothing from there on can be read.
    """

    sequence: int
    segment_base: int
    position: int = 0
    batches: int = 0
    first_append_ms: int = 0
    last_append_ms: int = 0
    headers_crc: int = 0
    epoch: int = 0
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A segment as the loop knows it. size: bytes of batches."""

    path: str
    base: int
    end: int
    size: int


def find_place(disk: Disk, stored: list[Stored], seed: int, sequence: int) -> Place:
    """The last batch border at or before `sequence`, which is not before the log's start. Raises OSError."""
    before = [segment for segment in stored if segment.base < sequence]
    if not before:
        return Place(sequence=sequence, segment_base=sequence)
    segment = before[-1]
    # Between segments nothing is missing, unless a file was lost.
    place = Place(sequence=segment.base, segment_base=segment.base, damaged=segment.end < sequence)
    if not disk.exists(segment.path):
        place.damaged = True
        return place
    file = disk.open(segment.path)
    try:
        _walk_to(file, segment, place, seed, min(sequence, segment.end))
    finally:
        file.close()
    return place


def _walk_to(file: File, segment: Stored, place: Place, seed: int, sequence: int) -> None:
    window = _WINDOW_BYTES
    while place.sequence < sequence and place.position < segment.size:
        data = file.read(min(window, segment.size - place.position), place.position)
        found = walk(data, place.position, place.sequence, seed, sequence_max=sequence, headers_crc=place.headers_crc,
                     with_body=False)  # fmt: skip
        if found.batches:
            place.first_append_ms = place.first_append_ms or found.batches[0][4]
            place.last_append_ms, place.epoch = found.batches[-1][4], found.epoch
            place.batches += len(found.batches)
        moved = found.position > place.position
        place.position, place.sequence, place.headers_crc = found.position, found.sequence, found.headers_crc
        if moved:
            continue
        if found.stop == SHORT and found.needed > len(data) and place.position + found.needed <= segment.size:
            window = max(window, found.needed)
            continue
        if found.stop == 0:
            return                                             # `sequence` falls inside the next batch, which goes too
        # Damage: what lies behind it may be sound, and the cut behind that. Where nothing is, the log ends before it:
        # what is cut must not be found again by who looks for where reading can go on.
        rest = file.read(segment.size - place.position, place.position)
        after = find_batch(rest, seed, place.sequence + 1, sequence + 1)
        if after is None:
            place.damaged = True
            return
        place.position, place.sequence = place.position + after[0], after[1]


def epoch_before(epochs: list[tuple[int, int]], sequence: int) -> int:
    """The epoch of the record before `sequence`, also when retention removed it; 0 when there was none."""
    return max((epoch for epoch, start in epochs if start < sequence), default=0)


def begin_cut(
    disk: Disk, path: str, generation: int, facts: ShardFacts, epochs: bytes, keep: list[str], sealed: list[Sealed]
) -> None:
    """Everything that a crash may not undo or do by half. facts: as the log is to be, `cutting` set; epochs: packed,
    of the log as it was; keep: paths of the segments that stay; sealed: of those, what has no trailer yet.
    Raises OSError, SyncFailed."""
    for trailer in sealed:
        file = disk.open(trailer.path)
        try:
            file.write([trailer.trailer], trailer.position)
        finally:
            file.close()
    for name in keep:
        if not disk.exists(name):
            continue                                           # it was lost; who reads there says so
        file = disk.open(name)
        try:
            _sync(file)
        finally:
            file.close()
    # A cache that reaches past the cut would speak of other batches once the log has grown again.
    base = f"{path}/{facts.segment_base:020d}"
    if disk.exists(f"{base}.psn"):
        disk.remove(f"{base}.psn")
    if disk.exists(f"{base}.idx"):
        file = disk.open(f"{base}.idx")
        try:
            index = SparseIndex.from_bytes(file.read(file.size(), 0), facts.position)
        finally:
            file.close()
        replace_file(disk, f"{base}.idx", index.to_bytes())
    replace_file(disk, f"{path}/epochs", epochs)
    _sync_names(disk, path)
    write_super(disk, path, facts, generation)


def finish_cut(disk: Disk, path: str, generation: int, facts: ShardFacts, bases: list[int]) -> tuple[int, ShardFacts]:
    """What `super` says holds: remove the rest. bases: of the segments there are. Raises OSError, SyncFailed.

    May be done again from the start after a crash anywhere in it. Returns what `super` says afterwards.
    """
    empty = facts.position == 0 and facts.sequence == facts.log_start
    for base in reversed(bases):
        if empty or base > facts.segment_base or (base == facts.segment_base and facts.position == 0):
            for suffix in (".psn", ".idx", ".log"):
                if disk.exists(f"{path}/{base:020d}{suffix}"):
                    disk.remove(f"{path}/{base:020d}{suffix}")
        elif base == facts.segment_base:
            file = disk.open(f"{path}/{base:020d}.log")
            try:
                shorten(file, facts.position)
            finally:
                file.close()
    if disk.exists(f"{path}/epochs"):
        file = disk.open(f"{path}/epochs")
        try:
            epochs = unpack_epochs(file.read(file.size(), 0)) or []
        finally:
            file.close()
        # A log of which nothing is left still knows the epoch of its last record: logs are compared by that.
        left = [] if empty and not facts.epoch else [pair for pair in epochs if pair[1] < facts.sequence]
        replace_file(disk, f"{path}/epochs", pack_epochs(left))
    _sync_names(disk, path)
    facts = replace(facts, cutting=False)
    write_super(disk, path, facts, generation + 1)
    return generation + 1, facts


def shorten(file: File, position: int) -> None:
    """Zeros first: whatever becomes of the shorter size, no old batch follows the cut at once. Raises OSError."""
    size = file.size()
    if size > position:
        file.write([bytes(min(_HEADER_BYTES, size - position))], position)
        file.truncate(position)
    _sync(file)


def _sync(file: File) -> None:
    try:
        file.sync()
    except OSError as cause:
        raise SyncFailed(file.path) from cause


def _sync_names(disk: Disk, path: str) -> None:
    try:
        disk.sync_directory(path)
    except OSError as cause:
        raise SyncFailed(path) from cause
