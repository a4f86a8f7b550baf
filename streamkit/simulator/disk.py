"""The disk of a machine: what its processes see, and what of it would survive a loss of power.

A file is what everybody reads (`content`), what is on the platter (`durable`), and the list of changes between the two.
A loss of power keeps any version of each changed 512-byte sector, any prefix of the changes in size, and of the names
made, moved and removed in a directory any prefix since it was last synced. The end of a process loses none of that; but
a write under way may have stopped anywhere.

Every change passes `_step`, which counts: a crash can be asked for at the n-th. Paths are relative to the machine.
"""

from __future__ import annotations

import asyncio
import errno
import posixpath
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streamkit.errors import DataDirectoryLocked
from streamkit.runtime.interfaces import Buffer, Flusher, FlushSource, FlushWrite
from streamkit.simulator.loop import Gone, Process

SECTOR_BYTES = 512
_ZEROS = bytes(1 << 20)


@dataclass(slots=True, kw_only=True)
class DiskFaults:
    """Chances are for each write or sync; seconds are virtual.

    """

    write_seconds: float = 0.00002
    sync_seconds: float = 0.0005
    slow: float = 0.0
    slow_seconds: float = 0.2
    sync_fails: float = 0.0
    cold: float = 0.0                      # read_nowait would wait
    capacity_bytes: int = 1 << 40


@dataclass(slots=True)
class _Change:
    """A write at `position`, or a change of size (data None, position = size)."""

    position: int
    data: bytes | None


class _Image:
    """What a file holds: `held`, and zeros from there up to `size`. A journal made ahead is zeros for the most part."""

    __slots__ = ("held", "size")

    def __init__(self, held: bytes | bytearray = b"", size: int = 0) -> None:
        self.held = bytearray(held)
        self.size = max(size, len(held))

    def copy(self) -> _Image:
        return _Image(self.held, self.size)

    def read(self, position: int, size: int) -> bytes:
        end = min(position + size, self.size)
        found = bytes(self.held[position:end])
        return found if len(found) >= end - position else found.ljust(end - position, b"\0")

    def put(self, data: bytes, position: int) -> None:
        held, end = self.held, position + len(data)
        if position < len(held) or len(data) < SECTOR_BYTES or not _ZEROS.startswith(data):
            if position > len(held):
                held.extend(bytes(position - len(held)))
            held[position:end] = data
        if end > self.size:
            self.size = end

    def resize(self, size: int) -> None:
        if size < len(self.held):
            del self.held[size:]
        self.size = size

    # As a bytearray, for whoever looks at it or damages it.

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        return self.read(0, self.size)[part]

    def __setitem__(self, part: slice, data: bytes) -> None:
        self.held.extend(bytes(self.size - len(self.held)))
        self.held[part] = data
        self.size = len(self.held)

    def __delitem__(self, part: slice) -> None:
        self[part] = b""


@dataclass(slots=True)
class _Inode:
    content: _Image = field(default_factory=_Image)
    durable: _Image = field(default_factory=_Image)
    changes: list[_Change] = field(default_factory=list)

    def write(self, data: bytes, position: int) -> None:
        self.content.put(data, position)
        self.changes.append(_Change(position, data))

    def truncate(self, size: int) -> None:
        self.content.resize(size)
        self.changes.append(_Change(size, None))

    def sync(self) -> None:
        for change in self.changes:
            if change.data is None:
                self.durable.resize(change.position)
            else:
                self.durable.put(change.data, change.position)
        self.changes.clear()

    def lose(self, draw: random.Random, keep: float) -> None:
        """What a loss of power leaves: each changed sector in one of the versions it had since the last sync."""
        kept_sizes = draw.randint(0, len(self.changes)) if draw.random() >= keep else len(self.changes)
        touched: dict[int, int] = {}
        for change in self.changes:
            if change.data is not None:
                for sector in _sectors(change.position, len(change.data)):
                    touched[sector] = touched.get(sector, 0) + 1
        versions = {
            sector: count if draw.random() < keep else draw.randint(0, count - 1) for sector, count in touched.items()
        }
        image = self.durable
        size = image.size
        for index, change in enumerate(self.changes):
            if change.data is None:
                if index < kept_sizes:
                    size = change.position
                    image.resize(size)
                continue
            if index < kept_sizes:
                size = max(size, change.position + len(change.data))
            _put_sectors(image, change, versions)
        image.resize(size)
        self.content = image.copy()
        self.changes.clear()

    def forget_changes(self, draw: random.Random) -> None:
        """A sync failed: the system calls the pages clean; what reached the platter nobody knows."""
        seen = self.content
        self.lose(draw, draw.random())
        self.content = seen


def _sectors(position: int, size: int) -> range:
    return range(position // SECTOR_BYTES, (position + size + SECTOR_BYTES - 1) // SECTOR_BYTES)


def _put_sectors(image: _Image, change: _Change, versions: dict[int, int]) -> None:
    # Applies the parts of a write whose sectors still have a version to come.
    data = change.data
    assert data is not None
    for sector in _sectors(change.position, len(data)):
        if versions[sector]:
            versions[sector] -= 1
            low = max(sector * SECTOR_BYTES, change.position)
            high = min((sector + 1) * SECTOR_BYTES, change.position + len(data))
            image.put(data[low - change.position : high - change.position], low)


@dataclass(slots=True)
class _NameChange:
    """In `directory`: name → inode or None; a rename is two of them that happen together."""

    directory: str
    names: tuple[tuple[str, _Inode | None], ...]


class SimulatedDisk:
    """The file system of one machine; outlives its processes."""

    def __init__(self, seed: int, faults: DiskFaults) -> None:
        self.faults = faults
        self.draw = random.Random(seed)
        self.names: dict[str, _Inode | None] = {"": None}        # None: a directory
        self.durable_names: dict[str, _Inode | None] = {"": None}
        self.name_changes: list[_NameChange] = []
        self.boot = 1
        self.steps = 0
        self.crash_at: int | None = None                       # a value of `steps`
        self.crash: Callable[[], None] = _nobody_asked
        self.locks: dict[str, Process] = {}
        self.used_bytes = 0
        self.lying = False                                     # syncs are answered, and nothing is synced
        self.misdirected = 0                                   # so many of the next writes land one sector too far
        self.astray = False                                    # one of them did
        self.stale = 0                                         # so many of the next reads find what was there before
        self.damaged = False                                   # it lost or changed what it had promised to keep

    # ---- faults -----------------------------------------------------------------------------------------------

    def lose_power(self) -> None:
        """After the machine's processes were killed: only what was synced is sure to be there."""
        self.damaged = self.damaged or self.lying
        keep = self.draw.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        directories: dict[str, int] = {}
        for change in self.name_changes:
            directories[change.directory] = directories.get(change.directory, 0) + 1
        left = {directory: self.draw.randint(0, count) for directory, count in directories.items()}
        for change in self.name_changes:
            if left[change.directory] > 0:
                left[change.directory] -= 1
                _apply(self.durable_names, change)
        self.name_changes.clear()
        self.names = {
            path: inode for path, inode in self.durable_names.items() if _reachable(path, self.durable_names)
        }
        self.durable_names = dict(self.names)
        for inode in {id(inode): inode for inode in self.names.values() if inode is not None}.values():
            inode.lose(self.draw, keep)
        self.boot += 1
        self._count()

    def rot(self, path: str, position: int, bits: int) -> None:
        """Flip bits of one byte at rest."""
        inode = self.names[path]
        assert inode is not None
        self.damaged = True
        for image in (inode.content, inode.durable):
            if position < image.size:
                image.put(bytes((image.read(position, 1)[0] ^ bits,)), position)

    def settle(self) -> None:
        """Whatever waits reaches the platter."""
        for change in self.name_changes:
            _apply(self.durable_names, change)
        self.name_changes.clear()
        for inode in self.names.values():
            if inode is not None:
                inode.sync()

    def picture(self) -> dict[str, bytes | None]:
        """Everything that is there, as a backup would hold it; None: a directory."""
        return {path: None if inode is None else inode.content[:] for path, inode in self.names.items()}

    def replace(self, picture: dict[str, bytes | None]) -> None:
        """Another disk, with that on it. Its processes are gone."""
        self.names = {
            path: None if content is None else _Inode(_Image(content), _Image(content))
            for path, content in picture.items()
        }
        self.durable_names = dict(self.names)
        self.name_changes.clear()
        self.lying, self.misdirected, self.astray, self.stale = False, 0, False, 0
        self.damaged = True
        self._count()

    def forget(self) -> None:
        """After the run: let go of everything."""
        self.crash = _nobody_asked
        self.names.clear()
        self.durable_names.clear()
        self.name_changes.clear()
        self.locks.clear()

    def files(self) -> dict[str, int]:
        """Every file and its size."""
        return {path: inode.content.size for path, inode in sorted(self.names.items()) if inode is not None}

    def _step(self, process: Process) -> bool:
        """False: the caller's process is gone and nothing happens. True: go on; a crash may be due right then."""
        if process.gone:
            return False
        self.steps += 1
        return True

    @property
    def crash_due(self) -> bool:
        return self.crash_at is not None and self.steps >= self.crash_at

    def die(self) -> None:
        self.crash_at = None
        self.crash()
        raise Gone

    def _count(self) -> None:
        self.used_bytes = sum(inode.content.size for inode in self.names.values() if inode is not None)

    # ---- for SimulatedFile and DiskOfProcess ----------------------------------------------------------------------

    def write(self, process: Process, inode: _Inode, data: bytes, position: int) -> None:
        if not self._step(process):
            return
        if self.crash_due:
            cut = self.draw.randint(0, len(data))
            if cut:
                inode.write(data[:cut], position)
            self.die()
        if self.misdirected and len(data) >= SECTOR_BYTES:
            self.misdirected -= 1
            self.astray = self.damaged = True
            position += SECTOR_BYTES
        grown = max(0, position + len(data) - inode.content.size)
        if self.used_bytes + grown > self.faults.capacity_bytes:
            room = max(0, len(data) - (self.used_bytes + grown - self.faults.capacity_bytes))
            if room:
                self.used_bytes += max(0, position + room - inode.content.size)
                inode.write(data[:room], position)
            raise OSError(errno.ENOSPC, "no space left on device")
        self.used_bytes += grown
        inode.write(data, position)

    def sync(self, process: Process, inode: _Inode) -> None:
        if not self._step(process):
            return
        if self.crash_due:
            self.die()
        if self.faults.sync_fails and self.draw.random() < self.faults.sync_fails:
            inode.forget_changes(self.draw)
            raise OSError(errno.EIO, "input/output error")
        if not self.lying:
            inode.sync()

    def truncate(self, process: Process, inode: _Inode, size: int) -> None:
        if not self._step(process):
            return
        if self.crash_due:
            self.die()
        self.used_bytes += size - inode.content.size
        inode.truncate(size)

    def change_names(self, process: Process, *names: tuple[str, _Inode | None], gone: Sequence[str] = ()) -> None:
        if not self._step(process):
            return
        if self.crash_due:
            self.die()
        removed = tuple((path, _REMOVED) for path in gone)
        change = _NameChange(posixpath.dirname(names[0][0] if names else gone[0]), removed + names)
        _apply(self.names, change)
        self.name_changes.append(change)
        self._count()

    def sync_names(self, process: Process, directory: str) -> None:
        if not self._step(process):
            return
        if self.crash_due:
            self.die()
        if self.lying:
            return
        for change in self.name_changes:
            if change.directory == directory:
                _apply(self.durable_names, change)
        self.name_changes = [change for change in self.name_changes if change.directory != directory]

    def sync_everything(self, process: Process) -> None:
        if not self._step(process):
            return
        if self.crash_due:
            self.die()
        if not self.lying:
            self.settle()


_REMOVED = _Inode()


def _nobody_asked() -> None:
    raise AssertionError("a crash was asked for, but nobody said what it is")


def _apply(names: dict[str, _Inode | None], change: _NameChange) -> None:
    for path, inode in change.names:
        if inode is _REMOVED:
            names.pop(path, None)
        else:
            names[path] = inode


def _reachable(path: str, names: dict[str, _Inode | None]) -> bool:
    while path:
        path = posixpath.dirname(path)
        if names.get(path, _REMOVED) is not None:
            return False
    return True


def _clean(path: str) -> str:
    clean = posixpath.normpath(path).lstrip("/")
    return "" if clean == "." else clean


class SimulatedFile:
    """An open file; stays usable after its name is gone, as files do."""

    def __init__(self, disk: SimulatedDisk, process: Process, path: str, inode: _Inode) -> None:
        self.path = path
        self._disk, self._process, self._inode = disk, process, inode
        self._closed = False

    def fileno(self) -> int:
        return -1

    def read(self, size: int, position: int) -> bytes:
        self._check()
        disk = self._disk
        if disk.stale and size >= SECTOR_BYTES:
            disk.stale -= 1
            return self._inode.durable.read(position, size)
        return self._inode.content.read(position, size)

    def read_nowait(self, size: int, position: int) -> bytes | None:
        faults = self._disk.faults
        if faults.cold and self._disk.draw.random() < faults.cold:
            return None
        return self.read(size, position)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        self._check()
        self._disk.write(self._process, self._inode, b"".join(buffers), position)

    def write_out(self, position: int, size: int) -> None:
        self._check()                          # on its way: as likely to be lost as before

    def sync(self) -> None:
        self._check()
        self._disk.sync(self._process, self._inode)

    def truncate(self, size: int) -> None:
        self._check()
        self._disk.truncate(self._process, self._inode, size)

    def size(self) -> int:
        return self._inode.content.size

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed and not self._process.gone:
            raise OSError(errno.EBADF, "bad file descriptor", self.path)


class _Lock:
    def __init__(self, disk: SimulatedDisk, process: Process, path: str) -> None:
        self._disk, self._process, self._path = disk, process, path

    def release(self) -> None:
        if self._disk.locks.get(self._path) is self._process:
            del self._disk.locks[self._path]


class DiskOfProcess:
    """`runtime.Disk` as one process sees its machine's disk."""

    def __init__(self, disk: SimulatedDisk, process: Process) -> None:
        self._disk = disk
        self._process = process

    def open(self, path: str, *, create: bool = False) -> SimulatedFile:
        clean = _clean(path)
        if clean not in self._disk.names:
            if not create or self._disk.names.get(posixpath.dirname(clean), _REMOVED) is not None:
                raise FileNotFoundError(errno.ENOENT, "no such file or directory", path)
            self._disk.change_names(self._process, (clean, _Inode()))
        inode = self._disk.names.get(clean, _REMOVED)
        if inode is None:
            raise IsADirectoryError(errno.EISDIR, "is a directory", path)
        return SimulatedFile(self._disk, self._process, path, inode)

    def exists(self, path: str) -> bool:
        return _clean(path) in self._disk.names

    def list(self, path: str) -> list[str]:
        clean = _clean(path)
        if self._disk.names.get(clean, _REMOVED) is not None:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        start = clean + "/" if clean else ""
        return sorted(
            name[len(start) :] for name in self._disk.names
            if name and name.startswith(start) and "/" not in name[len(start) :]
        )

    def make_directory(self, path: str) -> None:
        clean = _clean(path)
        made = ""
        for part in clean.split("/"):
            made = posixpath.join(made, part)
            if made not in self._disk.names:
                self._disk.change_names(self._process, (made, None))

    def rename(self, old: str, new: str) -> None:
        old, new = _clean(old), _clean(new)
        if old not in self._disk.names:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", old)
        moved = [
            (new + path[len(old) :], inode)
            for path, inode in self._disk.names.items()
            if path == old or path.startswith(old + "/")
        ]
        gone = [path for path in self._disk.names if path == old or path.startswith(old + "/")]
        self._disk.change_names(self._process, *moved, gone=gone)

    def remove(self, path: str) -> None:
        clean = _clean(path)
        if self._disk.names.get(clean) is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._disk.change_names(self._process, gone=[clean])

    def remove_directory(self, path: str) -> None:
        clean = _clean(path)
        inside = [name for name in self._disk.names if name == clean or name.startswith(clean + "/")]
        for name in sorted(inside, reverse=True):
            self._disk.change_names(self._process, gone=[name])

    def sync_directory(self, path: str) -> None:
        self._disk.sync_names(self._process, _clean(path))

    def sync_all(self, path: str) -> None:
        self._disk.sync_everything(self._process)

    def free_bytes(self, path: str) -> int:
        return max(0, self._disk.faults.capacity_bytes - self._disk.used_bytes)

    def lock(self, path: str) -> _Lock:
        holder = self._disk.locks.get(path)
        if holder is not None and not holder.gone:
            raise DataDirectoryLocked(f"{path} is in use by {holder.name}", path=path, pid=None)
        self._disk.locks[path] = self._process
        return _Lock(self._disk, self._process, path)

    def boot_id(self) -> str:
        return f"boot-{self._disk.boot}"

    def start_flusher(self, source: FlushSource, on_progress: Callable[[], None]) -> Flusher:
        return SimulatedFlusher(self._disk, source, on_progress)


class TaskFlusher(ABC):
    """A thread of its own in real life: here a task that carries out one job after the other."""

    def __init__(self, source: FlushSource, on_progress: Callable[[], None]) -> None:
        self._source = source
        self._on_progress = on_progress
        self._woken = asyncio.Event()
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        self._woken.set()

    async def stop(self) -> None:
        self._stopping = True
        self._woken.set()
        await self._task

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while (job := self._source.take()) is not None:
                self._source.finish(await self.carry_out(job))
                self._on_progress()
            if self._stopping:
                return

    @abstractmethod
    async def carry_out(self, job: Sequence[FlushWrite]) -> OSError | None:
        """Its writes in order, until one fails."""


class SimulatedFlusher(TaskFlusher):
    """Lets virtual time pass between the writes of a job."""

    def __init__(self, disk: SimulatedDisk, source: FlushSource, on_progress: Callable[[], None]) -> None:
        super().__init__(source, on_progress)
        self._disk = disk

    async def carry_out(self, job: Sequence[FlushWrite]) -> OSError | None:
        faults, draw = self._disk.faults, self._disk.draw
        for write in job:
            seconds = faults.write_seconds * draw.random()
            if faults.slow and draw.random() < faults.slow:
                seconds += faults.slow_seconds * draw.random()
            await asyncio.sleep(seconds)
            try:
                if write.buffers:
                    write.file.write(write.buffers, write.position)
                if write.sync:
                    await asyncio.sleep(faults.sync_seconds * (0.5 + draw.random()))
                    write.file.sync()
            except OSError as error:
                return error
        return None
