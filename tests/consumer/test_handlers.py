"""What a handler is given, what is refused when it is decorated, and `feed`."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from streamkit._core.batch import Batch, Record
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.errors import BatchFailure, InvalidPosition, InvalidUse
from streamkit.model.codec import Protobuf


class Order(msgspec.Struct):
    id: int


@dataclass
class Plain:
    id: int


class Typed(TypedDict):
    id: int


def made(**options: Any) -> Consumer:
    settings: dict[str, Any] = {"application": "app", "start": "trim_horizon", "dead_letter": "dead"} | options
    return Consumer("s", **settings)


def fed(annotation: Any, values: list[Any], **options: Any) -> tuple[list[Any], Any]:
    """What a handler with that annotation got, and the report."""
    consumer = made(**options)
    got: list[Any] = []

    def handle(value: Any) -> None:
        got.append(value)

    handle.__annotations__["value"] = annotation
    consumer.handler(handle)
    return got, consumer.feed(values)


@pytest.mark.parametrize(("annotation", "value", "got"), [
    (dict, {"id": 1}, {"id": 1}),
    (dict[str, int], {"id": 1}, {"id": 1}),
    (list, [1, 2], [1, 2]),
    (str, "text", "text"),
    (int, 5, 5),
    (float, 1.5, 1.5),
    (Any, {"id": 1}, {"id": 1}),
    (Order, {"id": 1}, Order(1)),
    (Plain, {"id": 1}, Plain(1)),
    (Typed, {"id": 1}, {"id": 1}),
    (bytes, b"\x00\xff", b"\x00\xff"),
    (int | None, None, None),
])
def test_the_annotation_decides_what_a_handler_gets(annotation, value, got):
    values, report = fed(annotation, [value])

    assert values == [got] and report.handled == 1 and report.checkpoint == 1


@pytest.mark.parametrize(("annotation", "value", "reason"), [
    (dict, [1], "expected object, got array"),
    (int, "five", "expected int, got str"),
    (Order, {"id": "x"}, "id: expected int, got str"),
    (Plain, {}, "object missing required field id"),
    (Typed, {"id": None}, "id: expected int, got null"),
    (Order, b"{", "input data was truncated"),
])
def test_data_that_does_not_fit_is_a_dead_letter_with_its_reason(annotation, value, reason):
    values, report = fed(annotation, [value, value])

    assert values == [] and report.handled == 0 and report.retries == 0
    assert [dead.reason for dead in report.dead_letter] == [reason, reason]


def test_record_and_batch_handlers_get_records_that_decode_on_access():
    records, _ = fed(Record[Order], [{"id": 1}])
    batches, report = fed(Batch[Order], [{"id": 1}, {"id": 2}])

    assert records[0].value == Order(1) and records[0].key == "test"
    assert [record.value for record in batches[0]] == [Order(1), Order(2)] and report.handled == 2


def test_batches_are_no_larger_than_asked():
    batches, report = fed(Batch, list(range(25)), batch_records_max=10)

    assert [len(batch) for batch in batches] == [10, 10, 5] and report.handled == 25


def test_the_example_of_the_manual():
    consumer = made()

    @consumer.handler
    def bill(order: Order, ctx: Context) -> None:
        assert ctx.record.value == order and ctx.application == "app" and ctx.attempt == 1

    report = consumer.feed([{"id": 1, "total": 5}, {"id": "x"}])

    assert report.handled == 1
    assert report.dead_letter[0].reason == "id: expected int, got str"


def test_a_codec_chosen_by_name_is_used():
    values, _ = fed(dict, [{"id": 1}], codec="msgpack")

    assert values == [{"id": 1}]


def test_an_async_handler_is_fed_inside_and_outside_a_running_loop():
    consumer = made()
    got: list[int] = []

    @consumer.handler
    async def handle(value: int) -> None:
        await asyncio.sleep(0)
        got.append(value)

    async def inside() -> int:
        return consumer.feed([3]).handled

    assert consumer.feed([1, 2]).handled == 2
    assert asyncio.run(inside()) == 1
    assert got == [1, 2, 3]


def test_feed_retries_rejects_pauses_blocks_and_stops_as_the_policy_says():
    def failing(**options: Any) -> Any:
        consumer = made(retry=RetryPolicy(attempts_max=3, first_ms=60_000, last_ms=60_000), **options)

        @consumer.handler
        def handle(value: int, ctx: Context) -> None:
            if value == 1:
                raise ValueError("one")
            if value == 7:
                ctx.reject("seven")
            if value == 9:
                ctx.pause("nine")

        return consumer.feed([0, 1, 2])

    assert [(dead.reason, dead.attempts) for dead in failing().dead_letter] == [("ValueError: one", 3)]
    assert failing(on_exhausted="skip").skipped == 1
    assert failing(on_exhausted="stop").stopped is not None
    assert failing(on_exhausted="pause").paused == "ValueError: one"
    blocked = failing(dead_letter=None)
    assert (blocked.blocked.reason, blocked.blocked.attempts, blocked.checkpoint) == ("ValueError: one", 3, 1)


def test_a_handler_that_raises_stop_iteration_has_failed_at_that_record():
    consumer = made(retry=RetryPolicy(attempts_max=2))
    got: list[int] = []

    @consumer.handler
    def handle(number: int, ctx: Context) -> None:
        assert ctx.record.value == number
        if number == 2:
            next(iter(()))
        got.append(number)

    report = consumer.feed(range(5))

    assert got == [0, 1, 3, 4]
    assert [(dead.attempts, "StopIteration" in dead.reason) for dead in report.dead_letter] == [(2, True)]


def test_feed_reports_a_batch_failure_and_goes_on():
    consumer = made(retry=RetryPolicy(attempts_max=1))

    @consumer.handler
    def handle(batch: Batch[int]) -> None:
        if failed := [record for record in batch if record.value == 2]:
            raise BatchFailure(failed=failed) from KeyError("two")

    report = consumer.feed(range(5))

    assert report.handled == 4 and [dead.reason for dead in report.dead_letter] == ["KeyError: 'two'"]
    assert report.checkpoint == 5


def test_manual_checkpoints_are_counted_by_feed():
    consumer = made(checkpoint="manual")

    @consumer.handler
    def handle(value: int, ctx: Context) -> None:
        if value == 2:
            ctx.checkpoint()

    assert consumer.feed(range(5)).checkpoint == 3


def local_type():
    class Local(msgspec.Struct):
        id: int

    consumer = made()

    @consumer.handler
    def handle(value: Local) -> None: ...

    return consumer


def test_a_type_of_the_surrounding_function_is_found():
    assert local_type().feed([{"id": 1}, {}]).handled == 1


@pytest.mark.parametrize("code", [
    "def handle(value: Ordr): ...",
    "def handle(value: 'Ordr'): ...",
    "def handle(): ...",
    "def handle(a, b, c): ...",
    "def handle(value):\n    yield value",
    "async def handle(value):\n    yield value",
    "def handle(value: complex): ...",
    "handle = 5",
])
def test_a_handler_that_can_never_work_is_refused_when_decorated(code):
    names: dict[str, Any] = {}
    exec(f"from __future__ import annotations\n{code}", names)

    with pytest.raises(InvalidUse) as refused:
        made().handler(names["handle"])
    assert refused.value.try_


def test_a_second_handler_is_refused():
    consumer = made()
    consumer.handler(lambda value: None)

    with pytest.raises(InvalidUse, match="handles these records already"):
        consumer.handler(lambda value: None)


def test_a_consumer_without_a_handler_does_not_run():
    with pytest.raises(InvalidUse, match="there is no handler"):
        made().run()


@pytest.mark.parametrize("bad", [
    {"application": ""}, {"checkpoint": "often"}, {"on_exhausted": "ignore"}, {"batch_records_max": 0},
    {"prefetch_bytes_max": 0}, {"codec": "yaml"}, {"leases_max": 0}, {"start": "yesterday"},
    {"on_exhausted": "dead_letter", "dead_letter": None},
])
def test_an_impossible_setting_is_refused_with_its_name(bad):
    with pytest.raises((InvalidUse, InvalidPosition)):
        made(**bad)


def test_the_defaults_are_those_of_the_manual():
    config = ConsumerConfig(streams=("s",), application="a", start="latest", worker="w")

    assert (config.membership_ms, config.checkpoint_interval_ms, config.batch_records_max) == (10_000, 1_000, 10_000)
    assert (config.prefetch_bytes_max, config.drain_seconds, config.stall_seconds) == (64 << 20, 30, 300)
    assert (config.policy, config.checkpoint, config.retry.attempts_max) == ("block", "auto", 10)


def test_feed_runs_def_handlers_in_the_callers_thread():
    consumer = made()
    threads: list[int] = []
    consumer.handler(lambda value: threads.append(threading.get_ident()))

    consumer.feed([1])

    assert threads == [threading.get_ident()]


def test_messages_of_protoc_reach_a_handler_that_names_their_class():
    got, report = fed(StringValue, [StringValue(value="a"), b"\xff\xff"], codec=Protobuf(StringValue))

    assert got == [StringValue(value="a")]
    assert (report.handled, len(report.dead_letter)) == (1, 1)
