"""Reading the journal: its groups in order, and where damage hides some of them.

A group is written after the one before it in the file was synced (or was mere references), so a sound group proves that
everything before it had been on disk: an unsound place *before* it is damage, after the last one it is a torn tail.
The drawing of the format is in `_core/journal.pxd`. Called by `recovery` and `inspect`; knows bytes, not shards' files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from streamkit._core.files import crc32c
from streamkit.runtime.interfaces import File
from streamkit.storage.journal_files import HEADER_BYTES

ALIGNMENT = 4096
SECTOR_BYTES = 512
_MAGIC = b"SKG1"
KIND_BATCH = 1
KIND_REFERENCE = 2
_HEAD = struct.Struct("<4sIQQIIQII16x")
_DURABLE = struct.Struct("<16sQ")
_ENTRY = struct.Struct("<16sQQQQIB11x")
_HEADER_BYTES_MAX = 64 + 4096 * (24 + 64)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """kind: KIND_BATCH (data_position: where its bytes begin in the journal file) or KIND_REFERENCE."""

    uuid: bytes
    segment_base: int
    position: int
    base: int
    end: int
    size: int
    kind: int
    data_position: int


@dataclass(frozen=True, slots=True)
class JournalGroup:
    """position, size: of the whole group in the file. durable: what the group before made durable."""

    number: int
    position: int
    size: int
    crc: int
    previous_crc: int
    durable: tuple[tuple[bytes, int], ...]
    entries: tuple[JournalEntry, ...]


@dataclass(frozen=True, slots=True)
class JournalHole:
    """Bytes [position, end) that held groups and cannot be read; a sound group follows."""

    position: int
    end: int


def read_group(file: File, position: int, file_number: int, file_bytes: int, number_min: int) -> JournalGroup | None:
    """The group that begins at `position`, or None when no sound one of this life of the file does."""
    head = file.read(_HEAD.size, position)
    if len(head) < _HEAD.size:
        return None
    magic, crc, number, written_to, previous_crc, header_bytes, data_bytes, entries, durables = _HEAD.unpack(head)
    if magic != _MAGIC or written_to != file_number or number < number_min:
        return None
    tables = _DURABLE.size * durables + _ENTRY.size * entries
    if header_bytes != _HEAD.size + tables or header_bytes > _HEADER_BYTES_MAX:
        return None
    size = (header_bytes + data_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    if position + size > file_bytes:
        return None
    header = file.read(header_bytes, position)
    if len(header) < header_bytes or crc32c(header[8:]) != crc:
        return None
    durable = tuple(_DURABLE.unpack_from(header, _HEAD.size + i * _DURABLE.size) for i in range(durables))
    at = position + header_bytes
    listed = []
    for i in range(entries):
        uuid, base, place, first, end, length, kind = _ENTRY.unpack_from(
            header, _HEAD.size + durables * _DURABLE.size + i * _ENTRY.size
        )
        listed.append(JournalEntry(uuid, base, place, first, end, length, kind, at))
        at += length if kind == KIND_BATCH else 0
    if at != position + header_bytes + data_bytes:
        return None
    return JournalGroup(number, position, size, crc, previous_crc, durable, tuple(listed))


def read_groups(file: File, number: int) -> Iterator[JournalGroup | JournalHole]:
    """The groups that were written to the file under this number, in order, with the holes between them."""
    size = file.size()
    place = behind = HEADER_BYTES          # where the next one belongs; where the one before ends
    expected = 0
    while place < size:
        group = read_group(file, behind, number, size, expected)
        if group is None or (expected and group.number != expected):
            group = _find_group(file, place, number, size, expected)
            if group is None:
                return
            if group.position > place or (expected and group.number > expected):
                yield JournalHole(place, group.position)
        yield group
        # The very next one may have been put too far, and then reaches into the place of the one behind it.
        behind = group.position + group.size
        place = place + group.size if group.number == expected or not expected else behind
        expected = group.number + 1


def _find_group(file: File, position: int, file_number: int, size: int, number_min: int) -> JournalGroup | None:
    """The first sound group at or after `position`, at any sector."""
    window = 1 << 20
    while position < size:
        data = file.read(window, position)
        at = data.find(_MAGIC)
        while at >= 0:
            if at % SECTOR_BYTES == 0:
                group = read_group(file, position + at, file_number, size, number_min)
                if group is not None:
                    return group
            at = data.find(_MAGIC, at + 1)
        position += window
    return None
