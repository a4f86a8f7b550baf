"""What streamkit needs of the outside world; `real.py` keeps these promises, the simulator keeps them too.

Code above runs on an asyncio event loop and may use tasks, futures, `asyncio.sleep` and `loop.time()`: the
simulator brings an event loop of its own whose time is virtual. Everything else goes through here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview
TlsContext = ssl.SSLContext


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, Unix milliseconds; may jump either way."""

    def monotonic_ms(self) -> int:
        """Never falls; counts time asleep where the system can tell."""


class Random(Protocol):
    def uniform(self) -> float:
        """0 inclusive … 1 exclusive."""

    def bits(self, count: int) -> int: ...

    def uuid(self) -> bytes:
        """16 bytes that nobody else has."""


class File(Protocol):
    """One open file. Positions and sizes in bytes; short reads only at the end of the file."""

    path: str

    def fileno(self) -> int:
        """The descriptor, or -1 on a simulated disk."""

    def read(self, size: int, position: int) -> bytes: ...
    def read_nowait(self, size: int, position: int) -> bytes | None:
        """The same without waiting for the disk; None when it would wait."""

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """All of it, or OSError; may have been cut anywhere when it fails."""

    def write_out(self, position: int, size: int) -> None:
        """Wait until the disk has taken the range. Promises nothing: only the sync that follows has less to do."""

    def sync(self) -> None:
        """fdatasync: what was written is on disk. An OSError is final: never retried."""

    def truncate(self, size: int) -> None: ...
    def size(self) -> int: ...
    def close(self) -> None: ...


class Lock(Protocol):
    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FlushWrite:
    """One write of a flush job; `sync` asks for fdatasync after it."""

    file: File
    position: int
    buffers: Sequence[Buffer]
    sync: bool


class FlushSource(Protocol):
    """Whoever has bytes to flush, seen by the simulator; the real flusher does the same in C without the GIL.

    take() hands out everything that waits as one job (None: nothing waits); the writes are carried out in
    order; finish(error) reports that they all were, or the first that failed. One job at a time.
    """

    def take(self) -> Sequence[FlushWrite] | None: ...
    def finish(self, error: OSError | None) -> None: ...


class Flusher(Protocol):
    def wake(self) -> None:
        """There is something to take. Cheap; may be called for every append."""

    async def stop(self) -> None:
        """Flush what waits, then end. Returns when no write is under way."""


class Disk(Protocol):
    """A file system. Paths are text, relative to wherever the process runs."""

    def open(self, path: str, *, create: bool = False) -> File: ...
    def exists(self, path: str) -> bool: ...
    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted."""

    def make_directory(self, path: str) -> None:
        """With its parents, mode 0700; no error when it is there."""

    def rename(self, old: str, new: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def remove_directory(self, path: str) -> None:
        """With everything in it."""

    def sync_directory(self, path: str) -> None:
        """Names made, renamed and removed in it are on disk."""

    def sync_all(self, path: str) -> None:
        """syncfs: everything written to that file system is on disk."""

    def free_bytes(self, path: str) -> int: ...
    def lock(self, path: str) -> Lock:
        """An exclusive lock that dies with the process. Raises DataDirectoryLocked."""

    def boot_id(self) -> str:
        """Changes when the machine restarts, so also when the page cache was lost."""

    def start_flusher(self, source: FlushSource, on_progress: Callable[[], None]) -> Flusher:
        """Carry out the source's jobs one after the other; on_progress is called on the event loop after each."""


class Connection(Protocol):
    """The part of asyncio's transport that streamkit uses."""

    def write(self, data: Buffer) -> None: ...
    def writelines(self, list_of_data: Sequence[Buffer]) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class Listener(Protocol):
    address: str                       # "host:port" really bound, so port 0 works

    async def close(self) -> None: ...


class Network(Protocol):
    """Byte connections; protocols are asyncio.Protocol or asyncio.BufferedProtocol objects."""

    async def connect(self, address: str, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        """Raises ConnectionFailed. address: "host:port" or "unix:/path"."""

    async def listen(self, address: str, factory: ProtocolFactory, tls: TlsContext | None = None) -> Listener:
        """tls: connections are handed over once they are encrypted. Raises ConnectionFailed when the address cannot
        be had."""


class Executor(Protocol):
    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """`work` on another thread (the simulator runs it here and lets virtual time pass)."""


@dataclass(frozen=True, slots=True)
class Runtime:
    clock: Clock
    random: Random
    network: Network
    disk: Disk
    executor: Executor


