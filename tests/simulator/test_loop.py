import asyncio

import pytest

from streamkit.simulator.loop import OutOfTime, Process, SimulatedLoop, Stuck


@pytest.fixture
def loop():
    loop = SimulatedLoop()
    yield loop
    loop.close()


def test_sleeping_takes_virtual_time_only(loop):
    loop.run_until_complete(asyncio.sleep(86_400))

    assert 86_400 <= loop.time() < 86_401


def test_timers_fire_in_the_order_of_their_times_and_then_of_their_making(loop):
    seen = []

    async def main():
        for seconds, name in ((2, "c"), (1, "a"), (1, "b")):
            loop.call_later(seconds, seen.append, name)
        await asyncio.sleep(3)

    loop.run_until_complete(main())

    assert seen == ["a", "b", "c"]


def test_timeouts_tasks_queues_and_threads_work_as_in_asyncio(loop):
    async def main():
        queue = asyncio.Queue()
        task = asyncio.create_task(queue.get())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        await queue.put(await asyncio.to_thread(lambda: 7))
        return await task, await asyncio.wait_for(asyncio.sleep(1, "slept"), 2)

    assert loop.run_until_complete(main()) == (7, "slept")


def test_a_killed_process_runs_not_even_its_clean_up(loop):
    seen = []

    async def victim():
        try:
            await asyncio.sleep(10)
        finally:
            seen.append("clean-up")

    async def main():
        process = Process("victim")
        task = loop.spawn(process, victim())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(20)
        assert not seen
        assert not task.done()

    loop.run_until_complete(main())


def test_a_stopped_process_goes_on_where_it_was(loop):
    seen = []

    async def worker():
        for number in range(4):
            seen.append((number, round(loop.time())))
            await asyncio.sleep(1)

    async def main():
        process = Process("worker")
        loop.spawn(process, worker())
        await asyncio.sleep(1.5)
        process.stopped = True
        await asyncio.sleep(10)
        assert len(seen) == 2
        loop.resume(process)
        await asyncio.sleep(5)

    loop.run_until_complete(main())

    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert seen[2][1] in (11, 12)


def test_waiting_for_what_cannot_come_is_an_error(loop):
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())


def test_virtual_time_can_be_bounded(loop):
    loop.seconds_max = 5

    with pytest.raises(OutOfTime):
        loop.run_until_complete(asyncio.sleep(6))


def test_what_nobody_handles_is_kept_for_the_report(loop):
    async def main():
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    loop.run_until_complete(main())

    assert "ZeroDivisionError" in loop.unhandled[0]


def test_cancelled_timers_do_not_pile_up(loop):
    async def main():
        for _ in range(5000):
            loop.call_later(1000, print).cancel()
            await asyncio.sleep(0)

    loop.run_until_complete(main())

    assert len(loop.timers) < 1000
