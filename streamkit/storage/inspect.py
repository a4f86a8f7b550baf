"""Reading segment and journal files without a node: facts for people and for `streamkit segment inspect`.

Nothing is locked, changed or repaired. Damage is a fact like the others. Facts are dicts with a `kind`:

    segment    path, shard, base, bytes                          journal   path, number, node, bytes
    batch      position, base, end, bytes, epoch, …              group     position, number, crc, durable, entries
    damage     position, sequence, next_sequence, reason         entry     position, shard, base, end, bytes, held
    trailer    position, …; end     position, sequence           hole      position, end
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamkit._core.files import crc32c
from streamkit._core.segment import SHORT, TRAILER, TRAILER_SIZE, ZERO, find_batch, read_trailer, walk
from streamkit.errors import CorruptFile
from streamkit.runtime.interfaces import Disk, File
from streamkit.storage.journal_files import HEADER_BYTES, read_header
from streamkit.storage.journal_reader import KIND_BATCH, JournalHole, read_groups

_WINDOW_BYTES = 1 << 20
_SEQUENCE_MAX = (1 << 63) - 1
Facts = dict[str, Any]


def inspect_file(disk: Disk, path: str) -> Iterator[Facts]:
    """The facts of a .log or .jrn file, in file order. Raises CorruptFile when it is neither, OSError."""
    if path.endswith(".jrn"):
        return inspect_journal(disk, path)
    if path.endswith(".log"):
        return inspect_segment(disk, path)
    raise CorruptFile(
        f"{path} is neither a segment (.log) nor a journal (.jrn)", try_="name a file below shards/ or journal/",
        path=path, position=0, reason="file name",
    )  # fmt: skip


def inspect_segment(disk: Disk, path: str) -> Iterator[Facts]:
    """The shard is told by the directory's name, the first sequence by the file's."""
    directory, _, name = path.rpartition("/")
    shard = directory.rpartition("/")[2]
    try:
        uuid, base = bytes.fromhex(shard), int(name.removesuffix(".log"))
    except ValueError:
        uuid, base = b"", 0
    if len(uuid) != 16:
        raise CorruptFile(
            f"{path} does not lie in a shard's directory", try_="name it as <data>/shards/<shard>/<base>.log",
            path=path, position=0, reason="path",
        )  # fmt: skip
    file = disk.open(path)
    try:
        yield {"kind": "segment", "path": path, "shard": shard, "base": base, "bytes": file.size()}
        yield from _batches(file, crc32c(uuid), base)
    finally:
        file.close()


def _batches(file: File, seed: int, base: int) -> Iterator[Facts]:
    size, position, sequence, window = file.size(), 0, base, _WINDOW_BYTES
    while position < size:
        data = file.read(min(window, size - position), position)
        found = walk(data, position, sequence, seed)
        for place, first, records, length, append_ms, epoch, flags, producer, producer_epoch, number in found.batches:
            yield {
                "kind": "batch", "position": place, "base": first, "end": first + records, "bytes": length,
                "append_time_ms": append_ms, "epoch": epoch, "control": bool(flags & 1), "producer_id": producer,
                "producer_epoch": producer_epoch, "producer_sequence": number,
            }  # fmt: skip
        rest = data[found.position - position :]
        position, sequence = found.position, found.sequence
        if position >= size:
            break
        if found.stop == SHORT and position + found.needed <= size:
            window = max(window, found.needed)
            continue
        if found.stop == TRAILER:
            trailer = read_trailer(file.read(TRAILER_SIZE, position), seed)
            yield {"kind": "trailer", "position": position, **(trailer or {})}
            return
        if found.stop == ZERO and not any(rest):
            break
        place_after = find_batch(file.read(size - position, position), seed, sequence + 1, _SEQUENCE_MAX)
        after = (position + place_after[0], place_after[1]) if place_after else (size, sequence)
        reason = "cut short" if found.stop == SHORT else "not a sound batch"
        yield {"kind": "damage", "position": position, "sequence": sequence, "next_sequence": after[1],
               "reason": reason}  # fmt: skip
        position, sequence = after
    yield {"kind": "end", "position": position, "sequence": sequence}


def inspect_journal(disk: Disk, path: str) -> Iterator[Facts]:
    """Groups of the file's present life only; what an earlier life left is not shown."""
    file = disk.open(path)
    try:
        header = read_header(file.read(HEADER_BYTES, 0))
        name = path.rpartition("/")[2].removesuffix(".jrn")
        number = header[0] if header else int(name) if name.isdigit() else 0
        yield {"kind": "journal", "path": path, "number": number, "node": header[1].hex() if header else None,
               "bytes": file.size()}  # fmt: skip
        for group in read_groups(file, number):
            if isinstance(group, JournalHole):
                yield {"kind": "hole", "position": group.position, "end": group.end}
                continue
            yield {
                "kind": "group", "position": group.position, "number": group.number, "crc": group.crc,
                "durable": {uuid.hex(): end for uuid, end in group.durable}, "entries": len(group.entries),
            }  # fmt: skip
            for entry in group.entries:
                yield {
                    "kind": "entry", "position": entry.data_position, "shard": entry.uuid.hex(), "base": entry.base,
                    "end": entry.end, "bytes": entry.size, "segment_base": entry.segment_base,
                    "held": "batch" if entry.kind == KIND_BATCH else "reference",
                }  # fmt: skip
    finally:
        file.close()
