"""This machine's disk, which can be full or slow when a test wants it; its flusher is a task, not the thread in C."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence

from streamkit.runtime.interfaces import Buffer, Flusher, FlushSource, FlushWrite
from streamkit.runtime.real_disk import RealDisk, RealFile
from streamkit.simulator.disk import TaskFlusher


class FaultyFile:
    """One open file of a FaultyDisk."""

    def __init__(self, disk: FaultyDisk, file: RealFile) -> None:
        self.path = file.path
        self.fileno = file.fileno
        self.read = file.read
        self.read_nowait = file.read_nowait
        self.write_out = file.write_out
        self.sync = file.sync
        self.truncate = file.truncate
        self.size = file.size
        self.close = file.close
        self._disk = disk
        self._write = file.write

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        if self._disk.full:
            raise OSError(errno.ENOSPC, "no space left on device", self.path)
        self._write(buffers, position)


class FaultyDisk(RealDisk):
    """full: nothing more can be written. slow_s: what each sync takes longer."""

    def __init__(self) -> None:
        self.full = False
        self.slow_s = 0.0

    def open(self, path: str, *, create: bool = False) -> FaultyFile:  # type: ignore[override]  # it does what a RealFile does
        return FaultyFile(self, super().open(path, create=create))

    def free_bytes(self, path: str) -> int:
        return 0 if self.full else super().free_bytes(path)

    def start_flusher(self, source: FlushSource, on_progress: Callable[[], None]) -> Flusher:
        return _Flusher(self, source, on_progress)


class _Flusher(TaskFlusher):
    """Each job in a thread."""

    def __init__(self, disk: FaultyDisk, source: FlushSource, on_progress: Callable[[], None]) -> None:
        super().__init__(source, on_progress)
        self._disk = disk

    async def carry_out(self, job: Sequence[FlushWrite]) -> OSError | None:
        if self._disk.slow_s and any(write.sync for write in job):
            await asyncio.sleep(self._disk.slow_s)
        return await asyncio.get_running_loop().run_in_executor(None, _carried_out, job)


def _carried_out(job: Sequence[FlushWrite]) -> OSError | None:
    try:
        for write in job:
            if write.buffers:
                write.file.write(write.buffers, write.position)
            if write.sync:
                write.file.sync()
    except OSError as error:
        return error
    return None
