"""What must be on disk before others rely on it, for many shards with one sync: promised epochs, weaker levels.

One file, written from its beginning, made anew when it is full. Each frame begins on a 512-byte border and is written
twice, so that one bad place loses nothing; all that it says only ever grows, so a reader takes the sum of all sound
frames in whatever order. Little-endian:

      0   4  magic "SKV1"
      4   4  crc      CRC-32C of bytes 8 .. 24 + 24 × count
      8   8  number   1 for the first frame of the file, which says everything that was known then
     16   4  count
     20   4  zero
     24      count × { shard uuid 16, promised epoch u32, flags u32: 1 holds batches that did not ask for a sync }

A number that is missing between others was lost to damage: then no promise of this directory can be relied on, and its
shards come back uncertain. The last frame may be lost unseen. So whoever takes up a copy has it promise first the epoch
that the coordination store knows: no promise was ever newer. Read `Pledges.write` first.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streamkit._core.files import crc32c
from streamkit.runtime.interfaces import Disk, Executor, File
from streamkit.storage.checkpoint import SyncFailed

_NAME = "pledges"
_ALIGNMENT = 512
_HEAD = struct.Struct("<4sIQII")
_ENTRY = struct.Struct("<16sII")
_FILE_BYTES_MIN = 128 * 1024
_MEMORY = 1


@dataclass(slots=True)
class Pledged:
    """The sum of what the file says. lost: some of it is missing."""

    promises: dict[bytes, int] = field(default_factory=dict)
    memory: dict[bytes, None] = field(default_factory=dict)
    lost: bool = False


@dataclass(slots=True)
class _Round:
    """Those who write at one moment: one sync for all of them."""

    promises: dict[bytes, int] = field(default_factory=dict)
    memory: dict[bytes, None] = field(default_factory=dict)
    over: bool = False
    error: Exception | None = None


def read_pledges(disk: Disk, root: str, *, expected: bool) -> Pledged:
    """What was pledged in this directory. expected: there was a file. Raises OSError."""
    pledged = Pledged()
    if not disk.exists(f"{root}/{_NAME}"):
        pledged.lost = expected
        return pledged
    file = disk.open(f"{root}/{_NAME}")
    try:
        data = file.read(file.size(), 0)
    finally:
        file.close()
    numbers: set[int] = set()
    for at in range(0, len(data) - _HEAD.size, _ALIGNMENT):
        if data[at : at + 4] == b"SKV1":
            number = _take_frame(data, at, pledged)
            if number is not None:
                numbers.add(number)
    pledged.lost = numbers != set(range(1, len(numbers) + 1)) or not numbers
    return pledged


def _take_frame(data: bytes, at: int, pledged: Pledged) -> int | None:
    _, crc, number, count, _ = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + count * _ENTRY.size
    if end > len(data) or crc32c(data[at + 8 : end]) != crc:
        return None
    for place in range(at + _HEAD.size, end, _ENTRY.size):
        uuid, epoch, flags = _ENTRY.unpack_from(data, place)
        pledged.promises[uuid] = max(epoch, pledged.promises.get(uuid, 0))
        if flags & _MEMORY:
            pledged.memory[uuid] = None
    return int(number)


def _make_frame(number: int, promises: Mapping[bytes, int], memory: Mapping[bytes, None]) -> bytes:
    uuids = {**dict.fromkeys(promises), **dict.fromkeys(memory)}
    body = b"".join(_ENTRY.pack(uuid, promises.get(uuid, 0), _MEMORY if uuid in memory else 0) for uuid in uuids)
    rest = _HEAD.pack(b"SKV1", 0, number, len(uuids), 0)[8:] + body
    frame = b"SKV1" + struct.pack("<I", crc32c(rest)) + rest
    return frame.ljust(-(-len(frame) // _ALIGNMENT) * _ALIGNMENT, b"\0")


class Pledges:
    """The file of one open directory. What is written is in `promises` and `memory` once it is durable."""

    def __init__(self, disk: Disk, executor: Executor, root: str, pledged: Pledged) -> None:
        self._disk, self._executor, self._root = disk, executor, root
        self.promises, self.memory = dict(pledged.promises), dict(pledged.memory)
        self._file: File | None = None             # made anew by the first write of each process
        self._position = self._number = self._size = 0
        self._next = _Round()
        self._turn = asyncio.Lock()

    async def write(self, promises: Mapping[bytes, int], memory: Iterable[bytes] = ()) -> None:
        """Durable when it returns; what waits meanwhile goes together. Raises OSError, SyncFailed."""
        mine = self._next
        for uuid, epoch in promises.items():
            mine.promises[uuid] = max(epoch, mine.promises.get(uuid, 0))
        mine.memory.update(dict.fromkeys(memory))
        async with self._turn:
            if not mine.over:
                self._next = _Round()
                try:
                    await self._executor.run(self._put, mine)
                except (OSError, SyncFailed) as cause:
                    mine.error = cause
                mine.over = True
        if mine.error is not None:
            raise mine.error

    async def begin(self) -> None:
        """Have the file there, whatever it says: from then on its absence means that promises are lost."""
        if not self._disk.exists(f"{self._root}/{_NAME}"):
            await self.write({})

    def forget(self, uuids: Iterable[bytes]) -> None:
        """Those shards are gone: they are left out when the file is made anew."""
        for uuid in uuids:
            self.promises.pop(uuid, None)
            self.memory.pop(uuid, None)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, entries: _Round) -> None:
        promises = {uuid: max(epoch, self.promises.get(uuid, 0)) for uuid, epoch in entries.promises.items()}
        frame = _make_frame(self._number + 1, promises, entries.memory)
        if self._file is None or self._position + 2 * len(frame) > self._size:
            self._make_file({**self.promises, **promises}, {**self.memory, **entries.memory})
        else:
            self._file.write([frame, frame], self._position)
            _sync(self._file)
            self._position += 2 * len(frame)
            self._number += 1
        self.promises.update(promises)
        self.memory.update(entries.memory)

    def _make_file(self, promises: Mapping[bytes, int], memory: Mapping[bytes, None]) -> None:
        """A new file takes the old one's place when it is whole; zeroed, so that syncs change no metadata."""
        frame = _make_frame(1, promises, memory)
        size = max(_FILE_BYTES_MIN, 6 * len(frame))
        path = f"{self._root}/{_NAME}"
        file = self._disk.open(path + ".new", create=True)
        try:
            file.truncate(0)
            file.write([frame, frame, bytes(size - 2 * len(frame))], 0)
            _sync(file)
        finally:
            file.close()
        self._disk.rename(path + ".new", path)
        try:
            self._disk.sync_directory(self._root)
        except OSError as cause:
            raise SyncFailed(self._root) from cause
        self.close()
        self._file, self._size = self._disk.open(path), size
        self._position, self._number = 2 * len(frame), 1


def _sync(file: File) -> None:
    try:
        file.sync()
    except OSError as cause:
        raise SyncFailed(file.path) from cause
