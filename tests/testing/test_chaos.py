"""`streamkit.testing.chaos`: what a handler goes through when everything around it breaks, told by a seed."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from streamkit import Batch, Consumer, Context, Record, RetryPolicy, errors
from streamkit.testing import chaos


def consumer(**options):
    return Consumer("orders", application="billing", start="trim_horizon", **options)


def values(count=150):
    return [{"id": number} for number in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_every_value_is_handled_and_keys_stay_in_order(seed):
    made = consumer()
    times: dict[int, int] = defaultdict(int)

    @made.handler
    def handle(order: dict) -> None:
        times[order["id"]] += 1

    report = chaos(made, values(), seed=seed)

    assert report.ok, report
    assert sorted(times) == list(range(150)) and report.handled == sum(times.values())
    assert {number: count for number, count in times.items() if count > 1} == dict(report.again)


def test_killing_between_records_hands_some_of_them_out_again():
    again = 0
    for seed in range(4):
        made = consumer(checkpoint_interval_ms=200)

        @made.handler
        async def handle(order: dict) -> None:
            await asyncio.sleep(0.01)

        report = chaos(made, values(), seed=seed, acts=["kill_worker"])
        assert report.ok, report
        again += len(report.again)

    assert again > 0


def test_a_seed_says_everything():
    told = []
    for _ in range(2):
        made = consumer()

        @made.handler
        def handle(record: Record[dict], ctx: Context) -> None:
            assert ctx.record.sequence == record.sequence

        told.append(str(chaos(made, values(60), seed=3)))

    assert told[0] == told[1] and "seed 3" in told[0] and "everything settles" in told[0]


def test_a_handler_that_swallows_is_found_out_by_its_own_store_and_one_that_fails_goes_to_the_dead_letters():
    made = consumer(dead_letter="failed", retry=RetryPolicy(attempts_max=2, first_ms=10, last_ms=20))
    stored: set[int] = set()

    @made.handler
    def handle(batch: Batch[dict]) -> None:
        for record in batch:
            if record.value["id"] == 13:
                raise ValueError("unlucky")
            stored.add(record.value["id"])

    report = chaos(made, values(40), seed=5, act_count=4)

    assert report.ok, report
    assert report.dead_letters == (13,) and stored == set(range(40)) - {13} and report.failures >= 2


def test_what_blocks_is_said_to_be_stuck():
    made = consumer(retry=RetryPolicy(attempts_max=2, first_ms=10, last_ms=20))

    @made.handler
    def handle(order: dict) -> None:
        if order["id"] == 7:
            raise ValueError("never")

    report = chaos(made, values(20), seed=1, acts=[], act_count=0, shards=1, seconds_max=30)

    assert not report.ok and "virtual seconds it is behind on shard 0" in report.stuck
    assert 7 in report.lost and "lost: {'id': 7}" in str(report)


def test_what_cannot_be_played_is_refused():
    with pytest.raises(errors.InvalidUse, match="'flood' is no act"):
        chaos(consumer(), [], seed=1, acts=["flood"])
    with pytest.raises(errors.InvalidUse, match="there is no handler"):
        chaos(consumer(), [], seed=1)
