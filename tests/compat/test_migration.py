"""A KCL application's checkpoints become an application's positions: what was processed does not come again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from streamkit import Consumer
from streamkit._core.aggregation import Aggregator
from streamkit.client.client import AsyncClient
from streamkit.compat import migration
from streamkit.compat.kcl_table import KclLease
from streamkit.errors import ApplicationExists, InvalidRequest, NotMapped
from streamkit.model.sequence import sequence_number
from streamkit.testing import Clock, Node


@pytest.fixture
def node():
    with Node(clock=Clock()) as made:
        made.create_stream("orders", shards=2)
        yield made


def run(node, work):
    async def connected():
        async with AsyncClient(node.url) as client:
            return await work(client)

    from streamkit.runtime.real import LoopThread

    return LoopThread.shared().run(connected(), 20)


def put(node, first, last):
    with node.producer("orders") as producer:
        handles = {number: producer.put(number, key=f"k{number % 7}") for number in range(first, last)}
        return {number: handle.result(10) for number, handle in handles.items()}


def imported(node, leases, **options):
    async def work(client):
        made = await migration.plan(client, leases, stream="orders", **options)
        await migration.carry_out(client, "billing", made)
        return made

    return run(node, work)


def handled(node):
    consumer = Consumer("orders", application="billing", start={})
    seen: list[int] = []

    @consumer.handler
    def note(number: int) -> None:
        seen.append(number)

    node.run_until_idle(consumer)
    return sorted(seen)


def by_shard(results):
    found: dict[str, list] = {}
    for number, result in results.items():
        found.setdefault(result.shard, []).append((number, result.sequence_number))
    return found


def test_sequence_numbers_and_sentinels_are_gone_on_from(node):
    results = by_shard(put(node, 0, 60))
    (first, of_first), (second, of_second) = sorted(results.items())
    done, number = of_first[10]

    made = imported(node, [KclLease(first, number), KclLease(second, "TRIM_HORIZON", owner="old")])
    put(node, 60, 70)

    left = [n for n, _ in of_first if n > done] + [n for n, _ in of_second] + list(range(60, 70))
    assert handled(node) == sorted(left)
    assert made.owned == 1 and {move.shard.id: move.ahead for move in made.moves} == {
        first: len(of_first) - 11, second: len(of_second) + 1,        # and the record with which a log begins
    }  # fmt: skip


def test_latest_and_a_time_are_what_they_are_now(node):
    results = by_shard(put(node, 0, 40))
    first, second = sorted(results)
    node.clock.advance(hours=1)
    later = by_shard(put(node, 40, 80))
    leases = [KclLease(first, "LATEST"), KclLease(second, "AT_TIMESTAMP")]

    imported(node, leases, start=datetime.fromtimestamp(node.clock.now_ms() / 1000, UTC) - timedelta(minutes=30))

    assert handled(node) == [number for number, _ in later[second]]


def test_a_split_that_was_processed_is_not_processed_again(node):
    parent = next(iter(sorted(by_shard(put(node, 0, 40)))))
    node.client.split_shard("orders", 0).wait()
    results = by_shard(put(node, 40, 90))
    leases = [
        KclLease(parent, "SHARD_END"), KclLease("shardId-000000000001", "LATEST"),
        *(KclLease(shard, found[-2][1]) for shard, found in results.items() if shard > "shardId-000000000001"),
    ]  # fmt: skip

    imported(node, leases)

    assert handled(node) == sorted(
        found[-1][0] for shard, found in results.items() if shard > "shardId-000000000001"
    )
    states = {lease.shard: lease.state for lease in node.application("billing").lag.shards}
    assert states[parent] == "complete"


def test_children_without_a_lease_wait_for_their_parent(node):
    results = by_shard(put(node, 0, 40))
    parent, other = sorted(results)
    node.client.split_shard("orders", 0).wait()
    put(node, 40, 80)
    done, number = results[parent][-3]

    imported(node, [KclLease(parent, number), KclLease(other, "LATEST")])

    left = handled(node)
    assert set(left) & set(range(40)) == {n for n, _ in results[parent] if n > done}
    assert len(left) > 2, "and what its children hold"


def test_a_place_inside_an_aggregate_is_kept(node):
    node.create_stream("packed")
    aggregator = Aggregator()
    for number in range(5):
        assert aggregator.add("k", b"%d" % number)
    with node.producer("packed", codec="bytes") as producer:
        number = producer.put_and_wait(aggregator.bytes(), key="k").sequence_number
        producer.put_and_wait(b"5", key="k")

    async def work(client):
        leases = [KclLease("shardId-000000000000", number, sub=2, stream="packed")]
        made = await migration.plan(client, leases)
        await migration.carry_out(client, "unpacking", made)
        return made

    (move,) = run(node, work).moves
    consumer = Consumer("packed", application="unpacking", start={})
    seen: list[bytes] = []

    @consumer.handler
    def note(data: bytes) -> None:
        seen.append(data)

    node.run_until_idle(consumer)

    assert (move.sub, seen) == (3, [b"3", b"4", b"5"])


def test_the_last_of_an_aggregate_finishes_it(node):
    aggregator = Aggregator()
    for number in range(3):
        assert aggregator.add("k", b"%d" % number)
    with node.producer("orders", codec="bytes") as producer:
        put_as = producer.put_and_wait(aggregator.bytes(), key="k")

    async def work(client):
        return await migration.plan(
            client, [KclLease(put_as.shard, put_as.sequence_number, sub=2)], stream="orders", start="latest"
        )

    made = run(node, work)

    assert [(move.sub, move.ahead) for move in made.moves if move.shard.id == put_as.shard] == [(0, 0)]


def test_what_cannot_be_mapped_refuses_the_whole_with_the_list(node):
    """Acceptance: refuses if a shard cannot be mapped."""
    results = by_shard(put(node, 0, 40))
    first, second = sorted(results)
    number = int(results[first][0][1])
    foreign = sequence_number(5, ordinal=0, created_ms=1_600_000_000_000, arrived_ms=1_600_000_000_000)
    refusals = {
        (KclLease(first, foreign), KclLease(second, "LATEST")): f"orders/{first}: its checkpoint .* another stream's",
        (KclLease(first, str(number + (1 << 90))), KclLease(second, "LATEST")): "a record that does not exist here",
        (KclLease(first, "12345"), KclLease(second, "LATEST")): "is not a sequence number",
        (KclLease(first, "SHARD_END"), KclLease(second, "LATEST")): "it has ended, and it takes records",
        (KclLease(first, "AT_TIMESTAMP"), KclLease(second, "LATEST")): "a time that the table does not hold",
        (KclLease(first, "LATEST"),): f"orders/{second}: the table has no lease of it",
        (KclLease(first, "LATEST"), KclLease("shardId-000000000009", "LATEST"), KclLease(second, "7")):
            "2 of 3 shards cannot go on here: .*no such shard",
    }  # fmt: skip

    for leases, word in refusals.items():
        with pytest.raises(NotMapped, match=word) as refused:
            imported(node, leases)
        assert all(entry.startswith("orders/shardId-") for entry in refused.value.facts["shards"])
    assert run(node, listed) == ()


async def listed(client):
    from streamkit.protocol.messages import ListApplications

    return (await client.call(ListApplications())).names


def test_a_finished_shard_that_is_gone_is_no_matter(node):
    leases = [KclLease("shardId-000000000077", "SHARD_END")]

    made = imported(node, leases, start="latest")

    assert made.gone == ("orders/shardId-000000000077",) and len(made.moves) == 2


def test_an_application_that_exists_keeps_its_positions(node):
    put(node, 0, 10)
    leases = [KclLease(f"shardId-00000000000{number}", "TRIM_HORIZON") for number in (0, 1)]
    imported(node, leases)
    assert handled(node) == list(range(10))

    with pytest.raises(ApplicationExists):
        imported(node, leases)
    assert handled(node) == []


def test_a_table_without_a_stream_wants_one_named(node):
    async def work(client):
        return await migration.plan(client, [KclLease("shardId-000000000000", "LATEST")])

    with pytest.raises(InvalidRequest, match="which stream"):
        run(node, work)
