"""The real halves of `interfaces.py`: clock, randomness, network and threads of this machine.

The disk's half is `real_disk.py`. `real_runtime()` puts them together; `LoopThread` is the event loop that
sync callers share. Everything here is thin: what could be decided is decided above, where the simulator sees it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import errno
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from streamkit.errors import ConnectionFailed, InvalidUse, TimedOut
from streamkit.runtime.interfaces import Listener, ProtocolFactory, Runtime, TlsContext

T = TypeVar("T")
_LISTEN_BACKLOG = 1024
_HANDSHAKE_SECONDS = 10.0


class RealClock:
    """CLOCK_REALTIME, and CLOCK_BOOTTIME, which also counts time asleep."""

    _boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.clock_gettime_ns(self._boottime) // 1_000_000


class RealRandom:
    """Jitter from the fast generator, which a fork reseeds; identities from the system."""

    def uniform(self) -> float:
        return random.random()

    def bits(self, count: int) -> int:
        return int.from_bytes(os.urandom((count + 7) // 8)) >> (-count % 8)

    def uuid(self) -> bytes:
        return uuid.uuid4().bytes


def split_address(address: str) -> tuple[str, int]:
    """"host:port" or "[v6]:port" in two. Raises ConnectionFailed when it is neither."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConnectionFailed(
            f"{address!r} is not an address",
            try_='write it as "host:port" or "unix:/path"',
            address=address,
            sent=False,
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


class RealListener:
    """An open port or socket file; `close` stops taking connections and leaves those that exist."""

    def __init__(self, server: asyncio.AbstractServer, address: str, path: str = "") -> None:
        self.address = address
        self._server = server
        self._path = path

    async def close(self) -> None:
        self._server.close()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)      # noqa: PTH108


class RealNetwork:
    """TCP and Unix-domain sockets of the running event loop."""

    async def connect(self, address: str, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        loop = asyncio.get_running_loop()
        try:
            if address.startswith("unix:"):
                _, protocol = await loop.create_unix_connection(factory, address.removeprefix("unix:"))
                return protocol
            host, port = split_address(address)
            # Never held back for company: asyncio and uvloop switch Nagle's algorithm off themselves.
            _, protocol = await loop.create_connection(factory, host, port)
            return protocol
        except (OSError, UnicodeError) as cause:       # names of hosts that cannot be written in IDNA are the latter
            raise ConnectionFailed(
                f"nothing answers at {address}: {_reason(cause)}",
                try_="streamkit serve --dev",
                address=address,
                sent=False,
                errno=getattr(cause, "errno", None),
            ) from cause

    async def connect_socket(self, end: socket.socket, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        """A protocol on a connected stream socket, which the transport owns from now on: one end of `socket_pair`."""
        end.setblocking(False)
        _, protocol = await asyncio.get_running_loop().create_connection(factory, sock=end)
        return protocol

    async def listen(self, address: str, factory: ProtocolFactory, tls: TlsContext | None = None) -> Listener:
        loop = asyncio.get_running_loop()
        handshake_seconds = None if tls is None else _HANDSHAKE_SECONDS
        try:
            if address.startswith("unix:"):
                path = address.removeprefix("unix:")
                _remove_stale(path)
                server = await loop.create_unix_server(
                    factory, path, backlog=_LISTEN_BACKLOG, ssl=tls, ssl_handshake_timeout=handshake_seconds
                )
                os.chmod(path, 0o600)      # noqa: PTH101
                return RealListener(server, address, path)
            host, port = split_address(address)
            server = await loop.create_server(
                factory, host, port, backlog=_LISTEN_BACKLOG, reuse_address=True, ssl=tls,
                ssl_handshake_timeout=handshake_seconds,
            )
        except OSError as cause:
            raise ConnectionFailed(
                f"cannot listen at {address}: {_reason(cause)}",
                try_="choose another port, or stop the process that holds this one",
                address=address,
                sent=False,
                errno=cause.errno,
            ) from cause
        port = server.sockets[0].getsockname()[1]
        return RealListener(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends in this process: how an embedded client reaches its node without a port."""
    return socket.socketpair()


def _reason(cause: OSError | UnicodeError) -> str:
    # asyncio's text repeats the address; the system's own words do not.
    errno = cause.errno if isinstance(cause, OSError) else None
    return (os.strerror(errno) if errno and errno > 0 else str(cause)).lower()


def _remove_stale(path: str) -> None:
    # A socket file that nobody listens on is left over from a killed process. asyncio would remove any.
    if not os.path.exists(path):           # noqa: PTH110
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)                # noqa: PTH108
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)


class RealExecutor:
    """A few threads for work that would stall the event loop, with a bound on what waits for them."""

    def __init__(self, threads: int = 4, waiting_max: int = 256) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="streamkit-work")
        self._room = asyncio.Semaphore(threads + waiting_max)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        async with self._room:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        """No further work; the threads end when theirs is done."""
        self._pool.shutdown(wait=False)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one; loaded here, because the import of a client needs no loop yet."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopThread:
    """An event loop on a thread of its own, for callers that are not coroutines.

    `LoopThread.shared()` is the process's one, started when first asked for. A child made by fork has none of
    its parent's threads: there shared() starts a new one, and what the parent made refuses to work.
    """

    _shared: LoopThread | None = None
    _shared_lock = threading.Lock()

    def __init__(self, name: str = "streamkit-loop") -> None:
        self._process_id = os.getpid()
        self.loop = new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> LoopThread:
        with cls._shared_lock:
            if cls._shared is None or not cls._shared.alive:
                cls._shared = cls()
                atexit.register(cls._shared.stop)
            return cls._shared

    @property
    def alive(self) -> bool:
        return self._process_id == os.getpid() and self._thread.is_alive() and not self.loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """The result of `work`, run on the loop. Raises TimedOut (the work is cancelled), or what it raises."""
        try:
            self._check_usable()
        except InvalidUse:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise                      # the work's own
            future.cancel()
            timeout_ms = int((timeout_s or 0) * 1000)
            message = f"no result within {timeout_s} s"
            raise TimedOut(message, try_="wait longer", sent=True, timeout_ms=timeout_ms) from None
        except BaseException:
            future.cancel()                # the caller was interrupted: nobody waits for it any more
            raise

    def call(self, work: Callable[..., object], *args: Any) -> None:
        """Have `work(*args)` called on the loop soon; returns at once."""
        self._check_usable()
        self.loop.call_soon_threadsafe(work, *args)

    def stop(self) -> None:
        """Cancel what runs, close the loop and end the thread. Not from the loop itself."""
        if not self.alive:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def _check_usable(self) -> None:
        if self._process_id != os.getpid():
            raise InvalidUse(
                "this object was made before a fork; its connections belong to the parent process",
                try_="make clients, producers and consumers in the process that uses them",
                parent_pid=self._process_id,
            )
        if threading.current_thread() is self._thread:
            raise InvalidUse(
                "a blocking call on streamkit's own event loop would wait for itself",
                try_="use the async class there",
            )
        if not self.alive:
            raise InvalidUse("streamkit's event loop has ended", try_="make a new object")


def _after_fork() -> None:
    LoopThread._shared = None
    LoopThread._shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def real_runtime() -> Runtime:
    """This machine."""
    from streamkit.runtime.real_disk import RealDisk  # a client never needs it; loaded with the first runtime

    return Runtime(
        clock=RealClock(), random=RealRandom(), network=RealNetwork(), disk=RealDisk(), executor=RealExecutor()
    )
