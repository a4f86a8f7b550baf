"""The journal's files: their headers, making and zeroing them ahead, and using full ones again.

Files are zeroed in small steps, each waited for: a sync of the journal has to wait for whatever the disk was given
before it, and 64 MiB at once are a hundred milliseconds. The file in use is never zeroed further, because its syncs
would then write the zeros, and the file's new size, too.

A file's life:  made ─zeroed→ spare ─in turn→ current ─full→ retired ─its segments synced→ renumbered, spare again

A number is never used twice; groups carry it, so what a file held in an earlier life is told apart. Only `create`,
`create_ahead` and `renumber` write, on another thread; the flusher writes to the current file only.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from streamkit._core.files import crc32c
from streamkit.runtime.interfaces import Disk, Executor, File

HEADER_BYTES = 4096
SUFFIX = ".jrn"
_HEAD = struct.Struct("<4sIQ16sQQ")
_ZEROS = bytes(1 << 20)
_PAUSE_SECONDS = 0.004
_STEPS_IN_A_HURRY = 32


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


def create(disk: Disk, directory: str, number: int, node_id: bytes, size: int) -> File:
    """A new file, zeroed and synced. Raises OSError; nothing is left behind then."""
    file = disk.open(f"{directory}/{file_name(number)}", create=True)
    try:
        file.write([make_header(number, node_id, size)], 0)
        zero(file, HEADER_BYTES, size)
        file.sync()
        disk.sync_directory(directory)
    except OSError:
        file.close()
        disk.remove(file.path)
        raise
    return file


async def create_ahead(
    disk: Disk, executor: Executor, directory: str, number: int, node_id: bytes, size: int, *,
    step: int, hurry: Callable[[], bool], unwanted: Callable[[], bool],
) -> File | None:  # fmt: skip
    """The same, on the loop and little by little. None, and nothing left, when it became unwanted on the way."""
    file = disk.open(f"{directory}/{file_name(number)}", create=True)
    try:
        await executor.run(file.write, [make_header(number, node_id, size)], 0)
        position = HEADER_BYTES
        while position < size and not unwanted():
            end = min(size, position + (step * _STEPS_IN_A_HURRY if hurry() else step))
            await executor.run(_zero_out, file, position, end)
            position = end
            if not hurry():
                await asyncio.sleep(_PAUSE_SECONDS)
        if position == size:
            await executor.run(_settle, disk, directory, file)
            return file
        await executor.run(_remove, disk, file)
        return None
    except OSError:
        await executor.run(_remove, disk, file)
        raise


def zero(file: File, start: int, end: int) -> None:
    """Zeros from start to end, so that after one sync, later syncs of data there change no metadata."""
    position = start
    while position < end:
        step = min(len(_ZEROS), end - position)
        file.write([_ZEROS if step == len(_ZEROS) else _ZEROS[:step]], position)
        position += step


def _zero_out(file: File, start: int, end: int) -> None:
    zero(file, start, end)
    file.write_out(start, end - start)


def _settle(disk: Disk, directory: str, file: File) -> None:
    file.sync()
    disk.sync_directory(directory)


def _remove(disk: Disk, file: File) -> None:
    file.close()
    disk.remove(file.path)


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
