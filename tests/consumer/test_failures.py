"""Records that cannot be handled: every policy, attempts that survive, neighbours that are not touched."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, Record
from streamkit.client.client import AsyncClient
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.dead_letters import DeadLetters
from streamkit.consumer.failure import DeadRecord, RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.consumer.processor import RecordProcessor
from streamkit.consumer.reader import AsyncReader
from streamkit.consumer.surroundings import Stopped
from streamkit.errors import BatchFailure, InvalidUse
from streamkit.simulator.cluster import ADDRESS
from tests.consumer.bottle import Bottle, consumer, worker

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
QUICK = RetryPolicy(attempts_max=4, first_ms=100, last_ms=1_000)


async def dead_letters(bottle: Bottle, stream: str = "dead") -> list[Record[Any]]:
    _, runtime = bottle.world.new_process("reader")
    reader = AsyncReader(stream, start="trim_horizon", until="latest", client=AsyncClient(ADDRESS, runtime))
    return [record async for record in reader]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in ten batches"])
def test_a_record_that_always_fails_goes_to_the_dead_letter_stream_and_its_neighbours_are_handled(together):
    """Acceptance: consumer 3, a record that raises."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await (bottle.put_together if together else bottle.put)("s", list(range(10)))
        seen: list[int] = []
        attempts: list[int] = []
        made = consumer("w1", retry=QUICK, dead_letter="dead")

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            if value == 6:
                attempts.append(ctx.attempt)
                raise ValueError("six is too many")
            seen.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")
        dead = await dead_letters(bottle)

        assert seen == [0, 1, 2, 3, 4, 5, 7, 8, 9]
        assert attempts == [1, 2, 3, 4]
        assert [record.value for record in dead] == [6]
        headers = {name.removeprefix("dead-letter-"): value.decode() for name, value in dead[0].headers.items()}
        assert headers["reason"] == "ValueError: six is too many" and headers["attempts"] == "4"
        assert (headers["stream"], headers["shard"]) == ("s", "shardId-000000000000")
        assert headers["application"] == "app" and "six is too many" in headers["trace"]
        assert int(headers["failed-last-ms"]) > int(headers["failed-first-ms"])
        assert made.statistics.dead_lettered == 1 and made.statistics.skipped == 0

    Bottle.play(story)


def test_a_dead_letter_that_was_cut_off_does_not_take_the_place_of_the_next(monkeypatch):
    async def story(bottle: Bottle) -> None:
        for name in ("s", "dead"):
            await bottle.client.create_stream(name)
        await bottle.put("s", [1, 2])
        records = [record async for record in AsyncReader("s", start="trim_horizon", until="latest",
                                                          client=bottle.client)]  # fmt: skip
        box = DeadLetters(bottle.client, "dead")
        dead = [
            DeadRecord(record=record, error=ValueError("no"), attempts=1, application="app", worker="w",
                       failed_first_ms=1, failed_last_ms=2) for record in records
        ]  # fmt: skip
        stored = asyncio.Event()
        put_batch = bottle.client.put_batch

        async def unanswered(*arguments: Any) -> None:
            await put_batch(*arguments)
            stored.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(bottle.client, "put_batch", unanswered)
        putting = asyncio.ensure_future(box.put(dead[0]))
        await stored.wait()
        putting.cancel()                   # its lease is lost while the answer is on its way
        await asyncio.gather(putting, return_exceptions=True)
        monkeypatch.undo()
        await box.put(dead[1])

        assert [record.value for record in await dead_letters(bottle)] == [1, 2]

    Bottle.play(story)


def test_without_a_dead_letter_stream_the_shard_waits_and_goes_on_when_the_record_can_be_handled():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(5)))
        seen: list[int] = []
        healed: list[bool] = []
        made = consumer("w1", retry=QUICK)

        @made.handler
        async def handle(value: int) -> None:
            if value == 2 and not healed:
                raise ValueError("not yet")
            seen.append(value)

        bottle.start("w1", made)
        await asyncio.sleep(60)
        lease = (await bottle.describe("app")).leases[0]
        assert seen == [0, 1] and lease.poisoned == 1 and lease.lag_records == 3
        assert made.statistics.poisoned

        healed.append(True)
        await bottle.until_done("app")
        assert seen == list(range(5)) and not made.statistics.poisoned
        assert (await bottle.describe("app")).leases[0].poisoned == 0

    Bottle.play(story)


def test_skip_passes_over_only_because_it_was_chosen():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(4)))
        seen: list[int] = []
        made = consumer("w1", retry=QUICK, on_exhausted="skip")

        @made.handler
        def handle(value: int) -> None:
            if value == 1:
                raise ValueError("no")
            seen.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert seen == [0, 2, 3] and made.statistics.skipped == 1

    Bottle.play(story)


def test_stop_ends_the_worker_with_the_error_and_the_record_comes_again():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(4)))
        made = consumer("w1", retry=QUICK, on_exhausted="stop")

        @made.handler
        def handle(value: int) -> None:
            if value == 2:
                raise ValueError("no")

        bottle.start("w1", made)
        with pytest.raises(Stopped, match="failed 4 times: ValueError: no") as stopped:
            await bottle.tasks["w1"]

        assert isinstance(stopped.value.__cause__, ValueError)
        lease = (await bottle.describe("app")).leases[0]
        assert lease.lag_records == 2 and lease.owner == ""

    Bottle.play(story)


def test_pause_keeps_the_lease_and_the_record():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(4)))
        made = consumer("w1", retry=QUICK, on_exhausted="pause")

        @made.handler
        def handle(value: int) -> None:
            if value == 2:
                raise ValueError("no")

        bottle.start("w1", made)
        await asyncio.sleep(60)

        lease = (await bottle.describe("app")).leases[0]
        assert (lease.state, lease.owner, lease.lag_records, lease.reason) == ("paused", "w1", 2, "ValueError: no")

    Bottle.play(story)


def test_data_that_does_not_fit_is_not_retried():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put("s", [{"id": 1}, {"id": "x"}, {"id": 3}])

        class Order(msgspec.Struct):
            id: int

        seen: list[int] = []
        made = consumer("w1", retry=QUICK, dead_letter="dead")

        @made.handler
        def handle(order: Order) -> None:
            seen.append(order.id)

        bottle.start("w1", made)
        await bottle.until_done("app")
        dead = await dead_letters(bottle)

        assert seen == [1, 3] and made.statistics.retries == 0
        assert dead[0].headers["dead-letter-reason"] == b"id: expected int, got str"
        assert dead[0].headers["dead-letter-attempts"] == b"1"

    Bottle.play(story)


def test_a_missing_dead_letter_stream_loses_nothing():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1, 2])
        made = consumer("w1", retry=QUICK, dead_letter="dead")

        @made.handler
        def handle(value: int, ctx: Context) -> None:
            if value == 1:
                ctx.reject("bad one")

        bottle.start("w1", made)
        await asyncio.sleep(30)
        assert (await bottle.describe("app")).leases[0].lag_records == 2

        await bottle.client.create_stream("dead")
        await bottle.until_done("app")
        assert [record.headers["dead-letter-reason"] for record in await dead_letters(bottle)] == [b"bad one"]

    Bottle.play(story)


@pytest.mark.parametrize("bad", [[0], [9], [3, 4], [0, 5, 9], list(range(10))])
def test_a_batch_that_fails_is_halved_until_the_bad_records_are_alone(bad):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put_together("s", list(range(10)))
        handled: list[int] = []
        made = consumer("w1", retry=RetryPolicy(attempts_max=2, first_ms=10, last_ms=20), dead_letter="dead")

        @made.handler
        async def handle(batch: Batch[int]) -> None:
            values = [record.value for record in batch]
            if set(values) & set(bad):
                raise ValueError("somewhere in there")
            handled.extend(values)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert handled == [value for value in range(10) if value not in bad]
        assert [record.value for record in await dead_letters(bottle)] == bad

    Bottle.play(story)


def test_a_batch_failure_names_its_records_and_the_others_are_not_handled_again():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put_together("s", list(range(10)))
        calls: list[list[int]] = []
        made = consumer("w1", retry=RetryPolicy(attempts_max=2, first_ms=10, last_ms=20), dead_letter="dead")

        @made.handler
        def handle(batch: Batch[int]) -> None:
            calls.append([record.value for record in batch])
            failed = [record for record in batch if record.value in (3, 7)]
            if failed:
                raise BatchFailure(failed=failed)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert calls == [list(range(10)), [3], [7]]
        assert [record.value for record in await dead_letters(bottle)] == [3, 7]

    Bottle.play(story)


def test_retry_later_brings_the_record_back_before_later_ones_and_counts_no_attempt():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [0, 1, 2])
        seen: list[tuple[int, int]] = []
        made = consumer("w1", retry=QUICK)

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            seen.append((value, ctx.attempt))
            if value == 1 and len(seen) < 8:
                ctx.retry_later(5)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert seen == [(0, 1), *[(1, 1)] * 7, (2, 1)]

    Bottle.play(story)


def test_attempts_survive_a_killed_worker():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put("s", [0, 1])
        attempts: list[tuple[str, int]] = []
        policy = RetryPolicy(attempts_max=6, first_ms=1_000, last_ms=1_000)

        def start(name: str) -> None:
            made = consumer(name, retry=policy, dead_letter="dead")

            @made.handler
            async def handle(value: int, ctx: Context) -> None:
                if value == 1:
                    attempts.append((name, ctx.attempt))
                    raise ValueError("no")

            bottle.start(name, made)

        start("w1")
        await bottle.until(lambda: len(attempts) == 3)
        await asyncio.sleep(0.5)
        bottle.kill("w1")
        start("w2")
        await bottle.until_done("app")

        assert [attempt for _, attempt in attempts] == [1, 2, 3, 4, 5, 6]
        assert len(await dead_letters(bottle)) == 1

    Bottle.play(story)


def test_a_record_that_kills_its_process_is_found_and_ends_as_a_dead_letter():
    """Acceptance: consumer 3, a record that kills the process."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put_together("s", list(range(8)))
        handled: list[int] = []
        deaths: list[str] = []
        policy = RetryPolicy(attempts_max=3, first_ms=10, last_ms=20)

        def start(name: str) -> None:
            made = consumer(name, retry=policy, dead_letter="dead")

            @made.handler
            async def handle(value: int) -> None:
                if value == 5:
                    deaths.append(name)
                    bottle.kill(name)
                    await asyncio.sleep(1)
                    raise AssertionError("nothing runs in a killed process")
                handled.append(value)

            bottle.start(name, made)

        number = 0
        start("w0")
        while not (await dead_letters(bottle)):
            await asyncio.sleep(0.1)
            if deaths and deaths[-1] == f"w{number}":
                number += 1
                start(f"w{number}")
            assert number < 20
        await bottle.until_done("app")
        dead = await dead_letters(bottle)

        assert [record.value for record in dead] == [5]
        assert dead[0].headers["dead-letter-attempts"] == b"3"
        assert dead[0].headers["dead-letter-error"] == b"ProcessDied"
        assert set(handled) == {0, 1, 2, 3, 4, 6, 7} and handled[-2:] == [6, 7]
        assert len(deaths) == 3 + 3, "three owners without progress, then three proven attempts"

    Bottle.play(story)


def test_a_checkpoint_never_covers_a_failed_batch():
    """Acceptance: consumer 4, `process` fails on a batch, and `checkpoint()` stays before it."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(6)))
        beyond: list[BaseException] = []
        failed: list[int] = []

        class Careless(RecordProcessor):
            async def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
                if any(record.value == 3 for record in batch):
                    failed.append(batch.end_sequence - 1)
                    raise ValueError("no")
                await checkpointer.checkpoint()

            async def shutdown_requested(self, checkpointer: Checkpointer) -> None:
                await checkpointer.checkpoint()
                try:
                    checkpointer.checkpoint(at=failed[-1])
                except InvalidUse as error:
                    beyond.append(error)

        made = worker("w1", Careless, retry=QUICK)
        bottle.start("w1", made)
        await asyncio.sleep(5)
        made._member.stop()
        await bottle.tasks["w1"]

        assert (await bottle.describe("app")).leases[0].lag_records == 3
        assert len(beyond) == 1

    Bottle.play(story)


def test_manual_checkpoints_are_the_only_ones():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(10)))
        seen: list[int] = []
        made = consumer("w1", checkpoint="manual")

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            seen.append(value)
            if value == 4:
                await ctx.checkpoint()

        bottle.start("w1", made)
        await bottle.until(lambda: len(seen) == 10)
        made._member.stop()
        await bottle.tasks["w1"]

        assert (await bottle.describe("app")).leases[0].lag_records == 5

    Bottle.play(story)


@given(st.integers(1, 20), st.integers(1, 1_000), st.integers(0, 100_000), st.floats(0, 1), st.floats(0, 1))
def test_waits_double_and_stay_within_their_bounds(attempts, first_ms, more_ms, jitter, drawn):
    policy = RetryPolicy(first_ms=first_ms, last_ms=first_ms + more_ms, jitter=jitter)

    wait_ms = policy.wait_ms(attempts, drawn)

    assert 0 <= wait_ms <= policy.last_ms
    assert policy.wait_ms(attempts, 0.0) == min(first_ms * 2 ** (attempts - 1), policy.last_ms)


@pytest.mark.parametrize("bad", [{"attempts_max": 0}, {"first_ms": 0}, {"first_ms": 9, "last_ms": 8}, {"jitter": 2}])
def test_an_impossible_retry_policy_is_refused(bad):
    with pytest.raises(InvalidUse):
        RetryPolicy(**bad)


@pytest.mark.parametrize("plain", [True, False], ids=["def", "async def"])
@pytest.mark.parametrize("ending", [SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_a_handler_that_would_end_its_thread_or_task_is_a_handler_that_failed(plain, ending):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put_together("s", list(range(5)))
        seen: list[int] = []
        made = consumer("w1", retry=QUICK)

        def take(value: int, ctx: Context) -> None:
            if value == 3 and ctx.attempt == 1:
                raise ending
            seen.append(value)

        async def take_in_turn(value: int, ctx: Context) -> None:
            take(value, ctx)

        made.handler(take if plain else take_in_turn)
        bottle.start("w1", made)
        await bottle.until_done("app")

        assert seen == [0, 1, 2, 3, 4] and made.statistics.failures == 1

    Bottle.play(story)


def test_a_wait_for_a_checkpoint_that_is_given_up_harms_nobody():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(4)))
        late: list[int] = []
        made = consumer("w1")

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            try:
                await asyncio.wait_for(ctx.checkpoint(), 0)
            except TimeoutError:
                late.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert late == [0, 1, 2, 3] and not bottle.tasks["w1"].done()

    Bottle.play(story)
