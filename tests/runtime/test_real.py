"""The real clock, network and threads, as far as a test can hold them to their promises."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest

from streamkit.errors import ConnectionFailed, InvalidUse, TimedOut
from streamkit.runtime.real import (
    LoopThread,
    RealClock,
    RealExecutor,
    RealNetwork,
    RealRandom,
    socket_pair,
    split_address,
)


class Echo(asyncio.Protocol):
    """Sends back what it gets; `heard` is done with the first bytes."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.heard.done():
            self.heard.set_result(data)


class Echoing(Echo):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


async def round_trip(address: str) -> None:
    network = RealNetwork()
    listener = await network.listen(address, Echoing)
    ours = await network.connect(listener.address, Echo)
    assert isinstance(ours, Echo)
    ours.transport.write(b"hello")  # type: ignore[attr-defined]
    assert await ours.heard == b"hello"
    ours.transport.close()
    await listener.close()
    with pytest.raises(ConnectionFailed) as caught:
        await network.connect(listener.address, Echo)
    assert caught.value.try_ == "streamkit serve --dev"


def test_the_monotonic_clock_never_falls_and_the_wall_clock_is_of_our_time() -> None:
    clock = RealClock()
    times = [clock.monotonic_ms() for _ in range(1_000)]
    assert times == sorted(times)
    assert clock.now_ms() > 1_700_000_000_000


def test_randomness_is_in_range_and_identities_differ() -> None:
    random = RealRandom()
    assert all(0 <= random.uniform() < 1 for _ in range(100))
    assert all(0 <= random.bits(7) < 128 for _ in range(100))
    assert len({random.uuid() for _ in range(100)}) == 100
    assert len(random.uuid()) == 16


async def test_tcp_on_a_port_of_the_systems_choice() -> None:
    await round_trip("127.0.0.1:0")


async def test_small_writes_leave_at_once_on_both_sides() -> None:
    accepted: asyncio.Future[Echo] = asyncio.get_running_loop().create_future()

    class Accepted(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.set_result(self)

    listener = await RealNetwork().listen("127.0.0.1:0", Accepted)
    ours = await RealNetwork().connect(listener.address, Echo)
    for end in (ours, await accepted):
        assert isinstance(end, Echo)
        assert end.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        end.transport.close()
    await listener.close()


async def test_a_connection_that_breaks_while_it_is_made_tells_its_protocol_alone() -> None:
    class Breaking(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            transport.abort()  # type: ignore[attr-defined]

        def connection_lost(self, cause: Exception | None) -> None:
            self.lost.set_result(None)

    listener = await RealNetwork().listen("127.0.0.1:0", Echo)
    ours = await RealNetwork().connect(listener.address, Breaking)
    assert isinstance(ours, Breaking)
    await ours.lost
    await listener.close()


async def test_a_host_whose_name_cannot_be_written_is_a_failed_connection() -> None:
    with pytest.raises(ConnectionFailed, match="nothing answers"):
        await RealNetwork().connect(f"{'a' * 64}.example:7440", Echo)


async def test_a_unix_socket_that_only_its_owner_may_use(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    listener = await RealNetwork().listen(address, Echo)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    await listener.close()
    assert not (tmp_path / "s").exists()
    await round_trip(address)


async def test_a_socket_file_left_by_a_killed_process_is_taken_over_but_not_one_in_use(tmp_path: Path) -> None:
    network, address = RealNetwork(), f"unix:{tmp_path}/s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(f"{tmp_path}/s")
    left.close()
    listener = await network.listen(address, Echo)
    with pytest.raises(ConnectionFailed):
        await network.listen(address, Echo)
    await listener.close()


async def test_a_port_in_use_cannot_be_had() -> None:
    listener = await RealNetwork().listen("127.0.0.1:0", Echo)
    with pytest.raises(ConnectionFailed, match="address already in use"):
        await RealNetwork().listen(listener.address, Echo)
    await listener.close()


async def test_a_socket_pair_connects_two_protocols_of_one_process() -> None:
    ours, theirs = socket_pair()
    near = await RealNetwork().connect_socket(ours, Echo)
    await RealNetwork().connect_socket(theirs, Echoing)
    assert isinstance(near, Echo)
    near.transport.write(b"hello")  # type: ignore[attr-defined]
    assert await near.heard == b"hello"


@pytest.mark.parametrize("address, parts", [("a:1", ("a", 1)), ("[::1]:65535", ("::1", 65_535)), ("::1:2", ("::1", 2))])
def test_addresses_have_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "a", "a:", ":1", "a:65536", "a:-1", "a:1x", "a:²"])
def test_what_is_no_address_is_a_failed_connection(address: str) -> None:
    with pytest.raises(ConnectionFailed):
        split_address(address)


async def test_the_executor_works_elsewhere_and_passes_errors_on() -> None:
    executor = RealExecutor(threads=1, waiting_max=1)
    assert await executor.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 // 0)
    assert await asyncio.gather(*(executor.run(int, str(i)) for i in range(20))) == list(range(20))


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_a_coroutine_runs_from_any_thread() -> None:
    thread = LoopThread.shared()
    assert thread is LoopThread.shared()
    found: list[int] = []
    others = [threading.Thread(target=lambda i=i: found.append(thread.run(answer(i)))) for i in range(5)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_a_coroutine_that_takes_too_long_is_cancelled() -> None:
    cancelled = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            cancelled.set()

    with pytest.raises(TimedOut):
        LoopThread.shared().run(slow(), timeout_s=0.01)
    assert cancelled.wait(5)


def test_the_works_own_time_out_is_told_apart_from_ours() -> None:
    async def fails() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        LoopThread.shared().run(fails(), timeout_s=60)


def test_a_blocking_call_on_the_loop_itself_is_refused() -> None:
    thread = LoopThread.shared()

    async def blocks() -> None:
        thread.run(answer(1))

    with pytest.raises(InvalidUse, match="wait for itself"):
        thread.run(blocks())


def test_stopping_cancels_what_runs_and_later_calls_are_refused() -> None:
    thread = LoopThread("test-loop")
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            ended.set()

    started = threading.Event()
    thread.call(lambda: (asyncio.ensure_future(endless(), loop=thread.loop), started.set()))
    started.wait(5)
    thread.run(answer(1))
    thread.stop()
    thread.stop()
    assert ended.is_set()
    with pytest.raises(InvalidUse):
        thread.run(answer(1))


def test_a_child_starts_its_own_loop_and_its_parents_is_refused() -> None:
    thread = LoopThread.shared()
    child = os.fork()
    if child == 0:
        try:
            thread.run(answer(1))
        except InvalidUse:
            os._exit(0 if LoopThread.shared().run(answer(7)) == 7 else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert thread.run(answer(2)) == 2
