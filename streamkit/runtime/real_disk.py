"""The real half of `Disk`: files of this machine, and the flusher thread that `_core.journal` brings.

Thin: what is written when is decided in `storage`, where the simulator sees it. Data directories have mode 0700, files
0600. Read `RealFile` first.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from streamkit._core import files
from streamkit._core.journal import Journal
from streamkit.errors import DataDirectoryLocked
from streamkit.runtime.interfaces import Buffer, Flusher, FlushSource

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


class RealFile:
    """One open file; closing twice is harmless."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int, position: int) -> bytes:
        data = files.read_at(self._fd, size, position)
        assert data is not None, "a read that may wait always answers"
        return data

    def read_nowait(self, size: int, position: int) -> bytes | None:
        return files.read_at(self._fd, size, position, True)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        files.write_at(self._fd, buffers, position)

    def write_out(self, position: int, size: int) -> None:
        files.write_out(self._fd, position, size)

    def sync(self) -> None:
        files.sync(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealLock:
    """flock on a file that names the process; the kernel releases it with the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealFlusher:
    """The journal's own thread. Its news arrive through an eventfd that the loop watches."""

    def __init__(self, journal: Journal, on_progress: Callable[[], None]) -> None:
        self._journal = journal
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._event = files.new_event()
        self._loop.add_reader(self._event, self._signalled)
        journal.start_thread(self._event)

    def wake(self) -> None:
        self._journal.wake()

    async def stop(self) -> None:
        await self._loop.run_in_executor(None, self._journal.stop_thread)
        if self._event >= 0:
            self._loop.remove_reader(self._event)
            os.close(self._event)
            self._event = -1
            self._on_progress()

    def _signalled(self) -> None:
        os.read(self._event, 8)
        self._on_progress()


class RealDisk:
    """The file system of this machine."""

    def open(self, path: str, *, create: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return RealFile(path, os.open(path, flags, _FILE_MODE))

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def list(self, path: str) -> list[str]:
        return sorted(entry.name for entry in os.scandir(path))

    def make_directory(self, path: str) -> None:
        missing = [part for part in (Path(path), *Path(path).parents) if not part.exists()]
        for part in reversed(missing):
            part.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)

    def rename(self, old: str, new: str) -> None:
        Path(old).rename(new)

    def remove(self, path: str) -> None:
        Path(path).unlink()

    def remove_directory(self, path: str) -> None:
        shutil.rmtree(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def lock(self, path: str) -> RealLock:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            pid = int(text) if text.isdigit() else None
            raise DataDirectoryLocked(
                f"{path} is held by process {pid if pid is not None else 'unknown'}",
                try_="stop that process, or use another data directory",
                path=path,
                pid=pid,
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return RealLock(fd)

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def start_flusher(self, source: FlushSource, on_progress: Callable[[], None]) -> Flusher:
        """The source must be a `storage.flusher.GroupCommit`: its journal is flushed in C, without the GIL."""
        journal = getattr(source, "journal", None)
        assert isinstance(journal, Journal), "the real flusher drives a journal"
        return RealFlusher(journal, on_progress)
