"""Good bytes in the place of damaged ones, from a copy that has them: batches are the same bytes everywhere.

    the peer's batches: just what is missing? ─▶ do they fit where the damage lies? ─▶ write ─▶ sync ─▶ read back, sum

Nothing that is sound is touched, and nothing is written that would not be sound afterwards. A write that went astray
shifts what follows it: then nothing fits any more, and the whole segment is written anew beside the old one. Read
`make_plan` first; the parts called `_on_disk` run on another thread than the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from streamkit._core.log import Segment
from streamkit._core.segment import walk
from streamkit.runtime.interfaces import Buffer, Disk
from streamkit.storage.checkpoint import SyncFailed, replace_file
from streamkit.storage.shard_log import Damage, ShardLog

logger = logging.getLogger("streamkit.storage")
_HEADER_BYTES = 112


@dataclass(slots=True, kw_only=True)
class Plan:
    """What goes where. segment: None when the file itself is gone; last: nothing of the segment lies behind it."""

    segment: Segment | None
    path: str
    position: int
    base: int
    end: int
    last: bool
    data: bytes
    seed: int


def make_plan(log: ShardLog, damage: Damage, batches: Buffer | Iterable[Buffer]) -> Plan | None:
    """None: the batches are not all of what is damaged, or it is not known where they belong."""
    data = bytes(batches) if isinstance(batches, bytes | bytearray | memoryview) else b"".join(batches)
    data = _exactly(data, log.seed, damage.sequence, damage.next_sequence)
    if not data:
        return None
    plan = Plan(segment=None, path="", position=0, base=damage.sequence, end=damage.next_sequence, last=True,
                data=data, seed=log.seed)  # fmt: skip
    before = [segment for segment in log.segments if segment.base <= damage.sequence]
    after = [segment for segment in log.segments if segment.base > damage.sequence]
    if after and after[0].base < damage.next_sequence:
        return None                                            # it reaches over a border: two damages, told one by one
    if before and damage.sequence < before[-1].end:
        plan.segment, plan.position = before[-1], damage.position
        plan.last = damage.next_sequence >= before[-1].end
    elif before and before[-1].end == damage.sequence and before[-1].position + len(data) < 1 << 32:
        plan.segment, plan.position = before[-1], before[-1].position
    plan.path = log.segment_path(plan.segment) if plan.segment else f"{log.path}/{damage.sequence:020d}.log"
    return plan


def make_whole(log: ShardLog, segment: Segment, batches: Iterable[Buffer]) -> Plan | None:
    """All of a sealed segment; None: the batches are not all of it."""
    data = _exactly(b"".join(batches), log.seed, segment.base, segment.end)
    if not data or len(data) >= 1 << 32:
        return None
    return Plan(segment=segment, path=log.segment_path(segment), position=0, base=segment.base, end=segment.end,
                last=True, data=data, seed=log.seed)  # fmt: skip


def _exactly(data: bytes, seed: int, sequence: int, next_sequence: int) -> bytes:
    """The part of a run that holds [sequence, next_sequence), when it does so whole and sound; else nothing."""
    if len(data) < _HEADER_BYTES:
        return b""
    found = walk(data, 0, int.from_bytes(data[8:16], "little"), seed)
    starts = {base: position for position, base, *_ in found.batches}
    ends = {base + records: position + size for position, base, records, size, *_ in found.batches}
    if sequence not in starts or next_sequence not in ends:
        return b""
    return data[starts[sequence] : ends[next_sequence]]


def repair_on_disk(disk: Disk, plan: Plan, sealed: bool) -> bool:
    """False: it does not fit, nothing was changed. Raises OSError, SyncFailed."""
    made = not disk.exists(plan.path)
    if made and plan.position:
        return False
    file = disk.open(plan.path, create=made)
    try:
        end = plan.position + len(plan.data)
        if not plan.last and not _continues(file.read(_HEADER_BYTES, end), plan):
            return False
        file.write([plan.data], plan.position)
        if plan.last and sealed and file.size() > end:
            file.truncate(end)                                 # what lay behind it was damaged with it
        try:
            file.sync()
            if made:
                disk.sync_directory(plan.path.rpartition("/")[0])
        except OSError as cause:
            raise SyncFailed(plan.path) from cause
        again = walk(file.read(len(plan.data), plan.position), plan.position, plan.base, plan.seed)
        return again.sequence == plan.end and again.position == end
    finally:
        file.close()


def replace_on_disk(disk: Disk, plan: Plan) -> bool:
    """The segment's file holds the plan's data and nothing else, or is as it was. Raises OSError, SyncFailed."""
    replace_file(disk, plan.path, plan.data, new=".whole")
    try:
        disk.sync_directory(plan.path.rpartition("/")[0])
    except OSError as cause:
        raise SyncFailed(plan.path) from cause
    file = disk.open(plan.path)
    try:
        again = walk(file.read(len(plan.data), 0), 0, plan.base, plan.seed)
        return again.sequence == plan.end and again.position == len(plan.data)
    finally:
        file.close()


def _continues(header: bytes, plan: Plan) -> bool:
    # Whether the batch that follows the damage begins there: it needs more than its header, which is sound.
    return walk(header, 0, plan.end, plan.seed, with_body=False).needed > _HEADER_BYTES


def apply_plan(log: ShardLog, damage: Damage | None, plan: Plan) -> None:
    """On the loop, once the bytes are back."""
    segment = plan.segment
    if segment is None:
        segment = Segment(log, plan.base)
        segment.sealed = segment.named = True
        place = sum(known.base < plan.base for known in log.segments)
        log.take_segments([*log.segments[:place], segment, *log.segments[place:]])
    if plan.last and plan.end >= segment.end:
        if segment.sealed:
            segment.end = plan.end
            segment.position = segment.written_position = plan.position + len(plan.data)
        segment.measured = False
    segment.forget_places()
    batches = walk(plan.data, 0, plan.base, plan.seed, with_body=False).batches
    if plan.position == 0:
        segment.first_append_ms = batches[0][4]
    for _, base, records, _, append_ms, epoch, flags, who, who_epoch, number in batches:
        log.note_epoch(epoch, base)
        if who:
            log.producers.note_late(who, who_epoch, number, records, base, append_ms, flags)
    log.damages = [known for known in log.damages if known is not damage and not (
        plan.base <= known.sequence and known.next_sequence <= plan.end)]  # fmt: skip
    logger.info("segment.repaired", extra={"facts": {"path": plan.path, "sequence": plan.base,
                                                     "next_sequence": plan.end}})  # fmt: skip


def stale_snapshots(log: ShardLog, sequence: int) -> list[str]:
    """Paths of producers' snapshots that were taken without the repaired batches."""
    return [log.segment_path(segment, ".psn") for segment in log.segments if segment.end > sequence]


def remove_files(disk: Disk, paths: list[str]) -> None:
    for path in paths:
        if disk.exists(path):
            disk.remove(path)
