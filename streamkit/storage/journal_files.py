"""The journal's files: their headers, making and zeroing them ahead, and using full ones again.

A file's life:  made ─zeroed→ spare ─in turn→ current ─full→ retired ─its segments synced→ renumbered, spare again

A number is never used twice; groups carry it, so what a file held in an earlier life is told apart. Only `prepare` and
`recycle` write, on another thread; the flusher writes to the current file only, below what is prepared.
"""

from __future__ import annotations

import struct

from streamkit._core.files import crc32c
from streamkit.runtime.interfaces import Disk, File

HEADER_BYTES = 4096
SUFFIX = ".jrn"
_HEAD = struct.Struct("<4sIQ16sQQ")
_ZEROS = bytes(1 << 20)


def file_name(number: int) -> str:
    return f"{number:016d}{SUFFIX}"


def make_header(number: int, node_id: bytes, size: int) -> bytes:
    rest = struct.pack("<Q16sQQ", number, node_id, size, 0)
    return (b"SKJ1" + struct.pack("<I", crc32c(rest)) + rest).ljust(HEADER_BYTES, b"\0")


def read_header(data: bytes) -> tuple[int, bytes, int] | None:
    """(number, node id, file bytes), or None when it is no sound journal header."""
    if len(data) < _HEAD.size:
        return None
    magic, crc, number, node_id, size, _ = _HEAD.unpack_from(data)
    if magic != b"SKJ1" or crc32c(data[8 : _HEAD.size]) != crc:
        return None
    return number, node_id, size


def create(disk: Disk, directory: str, number: int, node_id: bytes, *, size: int, prepared: int) -> File:
    """A new file, zeroed and synced up to `prepared`. Raises OSError; nothing usable is left behind then."""
    file = disk.open(f"{directory}/{file_name(number)}", create=True)
    try:
        file.write([make_header(number, node_id, size)], 0)
        zero(file, HEADER_BYTES, prepared)
        disk.sync_directory(directory)
    except OSError:
        file.close()
        disk.remove(file.path)
        raise
    return file


def zero(file: File, start: int, end: int) -> None:
    """Zeros from start to end, synced, so that a later sync of data there changes no metadata."""
    position = start
    while position < end:
        step = min(len(_ZEROS), end - position)
        file.write([_ZEROS if step == len(_ZEROS) else _ZEROS[:step]], position)
        position += step
    file.sync()


def renumber(disk: Disk, directory: str, file: File, number: int, node_id: bytes, size: int) -> File:
    """A full or leftover file under its next number; `file` is closed. Raises OSError."""
    old = file.path
    file.write([make_header(number, node_id, size)], 0)
    file.sync()
    file.close()
    new = f"{directory}/{file_name(number)}"
    disk.rename(old, new)
    disk.sync_directory(directory)
    return disk.open(new)
