"""Handlers that hang: coroutines are cancelled, functions take their process with them, and both count as attempts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from streamkit._core.batch import Batch
from streamkit.client.sync import Client
from streamkit.consumer import member
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.processor import RecordProcessor
from streamkit.consumer.reader import Reader
from streamkit.errors import InvalidUse
from streamkit.producer.producer import Producer
from tests.consumer.bottle import Bottle, consumer, worker
from tests.consumer.test_failures import dead_letters
from tests.consumer.test_processes import Workers, address

__all__ = ["address"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TWICE = RetryPolicy(attempts_max=2, first_ms=100, last_ms=1_000)
VALUES = list(range(8))


class Hands:
    """What is handled, and that it is one at a time."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.begun: list[int] = []
        self.cancelled = 0
        self.busy = 0

    async def __call__(self, value: int) -> None:
        assert not self.busy, "a record was delivered while another was in hand"
        self.busy += 1
        self.begun.append(value)
        try:
            if value == 3:
                await asyncio.Event().wait()
            self.done.append(value)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.busy -= 1


def hanging(form: str, hands: Hands) -> Any:
    settings: dict[str, Any] = {"handler_timeout_seconds": 5, "retry": TWICE, "dead_letter": "dead"}
    if form == "processor":
        class Processor(RecordProcessor):
            async def process(self, batch: Batch[int], checkpointer: Any) -> None:
                for value in batch.values():
                    await hands(int(value))
                checkpointer.checkpoint()

        return worker("w1", Processor, **settings)
    made = consumer("w1", ordering=Ordering.by_key(3) if form == "lanes" else Ordering.SHARD, **settings)
    if form == "batch":
        @made.handler
        async def handle_all(batch: Batch[int]) -> None:
            for record in batch:
                await hands(record.value)
    else:
        @made.handler
        async def handle(value: int) -> None:
            await hands(value)

    return made


@pytest.mark.parametrize("form", ["record", "batch", "processor", "lanes"])
def test_a_coroutine_that_hangs_is_cancelled_and_ends_in_the_dead_letter_stream(form):
    """Acceptance: consumer 3, a record that hangs."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        hands = Hands()
        await bottle.put_together("s", VALUES)         # one key: in lanes, too, one at a time and in order
        bottle.start("w1", made := hanging(form, hands))
        await bottle.until(lambda: made.statistics.dead_lettered > 0)
        await bottle.until(lambda: 7 in hands.done)
        dead = await dead_letters(bottle)

        alone = hands.begun.count(3)
        parts = 0 if form in ("record", "lanes") else 5        # with others: of eight, four, four, two and two records
        assert hands.cancelled == alone == 2 + parts
        assert sorted(set(hands.done)) == [0, 1, 2, 4, 5, 6, 7] and hands.done[-4:] == [4, 5, 6, 7]
        assert [record.value for record in dead] == [3]
        headers = dead[0].headers
        assert headers["dead-letter-attempts"] == b"2"
        assert headers["dead-letter-error"] == b"HandlerTimedOut"

    Bottle.play(story)


def test_without_a_bound_a_handler_may_take_as_long_as_it_wants():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1])
        seen: list[int] = []
        made = consumer("w1", retry=TWICE)

        @made.handler
        async def handle(value: int) -> None:
            await asyncio.sleep(1_000)
            seen.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app", seconds=1_100)

        assert seen == [1] and made.statistics.failures == 0

    Bottle.play(story)


def test_a_coroutine_that_swallows_the_cancellation_has_failed_all_the_same():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1])
        tries: list[int] = []
        made = consumer("w1", retry=TWICE, handler_timeout_seconds=1)

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            tries.append(ctx.attempt)
            if len(tries) == 1:
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    return

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert tries == [1, 2]

    Bottle.play(story)


def test_the_handlers_own_timeout_is_an_ordinary_failure():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put("s", [1])
        made = consumer("w1", retry=TWICE, handler_timeout_seconds=10, dead_letter="dead")

        @made.handler
        async def handle(value: int) -> None:
            async with asyncio.timeout(0.1):
                await asyncio.sleep(1)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert (await dead_letters(bottle))[0].headers["dead-letter-error"] == b"TimeoutError"

    Bottle.play(story)


@pytest.fixture
def workers(address: str) -> Iterator[Workers]:
    client = Client(address)
    client.create_stream("s", shards=1)
    client.create_stream("dead", shards=1)
    made = Workers(address)
    yield made
    for process in made.processes.values():
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.parametrize("form", ["record", "batch", "lanes"])
def test_a_function_that_hangs_takes_its_process_with_it_and_ends_in_the_dead_letter_stream(form, address, workers):
    """Acceptance: consumer 3, a record that hangs in a thread."""
    with Producer("s", url=address) as producer:
        for value in range(6):
            producer.put(value, key="k")
        producer.flush()
    workers.launch("group", "tests.consumer.hanging_process", address, form)
    workers.until(lambda _, words: words[:2] == ["ended", "5"])

    told = [words for _, words in workers.all if words[0] in ("begun", "ended")]
    hung = [pid for word, value, pid in told if word == "begun" and value == "3"]
    assert len(hung) == len(set(hung))
    assert len(hung) == 2 or (len(hung), form) == (3, "batch")     # a batch does not say which one it was
    behind = told[next(at for at, words in enumerate(told) if words[1] in ("4", "5")):]
    assert all(value in ("4", "5") for _, value, _ in behind), "nothing behind came before the record was put away"
    assert [value for word, value, _ in behind if word == "ended"] == ["4", "5"]
    dead = list(Reader("dead", start="trim_horizon", until="latest", url=address))
    assert [record.value for record in dead] == [3]
    assert dead[0].headers["dead-letter-attempts"] == b"2"


@pytest.mark.parametrize("how", ["lost", "fenced"])
def test_the_process_ends_at_once_when_the_lease_of_a_hanging_function_is_lost(how, monkeypatch):
    """Whoever has it next must not begin beside the function: nobody waits for the other shards then."""
    ended: list[str] = []
    monkeypatch.setattr(member, "end_process", lambda: ended.append("process"))
    made = object.__new__(member.Member)
    made._tasks = made._keeper = MagicMock()
    leases = {
        shard: SimpleNamespace(lost=True, shard=SimpleNamespace(uuid=shard), lease_epoch=1) for shard in (b"a", b"b")
    }  # fmt: skip
    made._held = {shard: SimpleNamespace(lease=lease, running=None) for shard, lease in leases.items()}
    made._hung = leases[b"a"]

    for shard in (b"b", b"a"):
        assert ended == []
        made._on_lost(shard) if how == "lost" else made._on_fenced(leases[shard])

    assert ended == ["process"]


def test_a_function_that_looks_at_stopping_ends_by_itself_and_may_try_again(tmp_path: Path):
    import streamkit

    tries: list[int] = []
    done = threading.Event()
    with streamkit.open(str(tmp_path / "data")) as node:
        with node.producer("s") as producer:
            producer.put_and_wait(1, key="k")
        made = node.consumer("s", application="app", start="trim_horizon", handler_timeout_seconds=0.2,
                             retry=RetryPolicy(attempts_max=5, first_ms=1, last_ms=10))

        @made.handler
        def handle(value: int, ctx: Context) -> None:
            tries.append(ctx.attempt)
            if len(tries) < 3:
                assert ctx.stopping.wait(20), "it is asked to end"
                raise TimeoutError("given up")
            assert not ctx.stopping.is_set()
            done.set()

        with made:
            assert done.wait(20)

    assert tries == [1, 2, 3]


def test_a_loop_over_batches_has_no_bound(address):
    with pytest.raises(InvalidUse):
        next(consumer("w1", url=address, handler_timeout_seconds=1).batches())
    with pytest.raises(InvalidUse):
        consumer("w1", handler_timeout_seconds=-1)
