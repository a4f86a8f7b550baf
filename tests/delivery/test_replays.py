"""Previews that write nothing, and ranges that are written once more."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamkit.delivery import Buffer, Delivery, FileSink
from streamkit.errors import InvalidUse
from streamkit.testing import Node
from tests.waiting import until


def bodies(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*-*-*") if path.is_file()}


def lines(found: dict[str, bytes]) -> list[int]:
    return sorted(int(line) for body in found.values() for line in body.split())


@pytest.fixture
def node():
    with Node() as made:
        made.create_stream("orders", shards=2)
        with made.producer("orders") as producer:
            for number in range(100):
                producer.put(number, key=str(number))
        yield made


def test_a_preview_shows_names_bodies_and_failures_and_writes_nothing(node, tmp_path):
    delivery = Delivery("lake", source="orders", sink=FileSink(str(tmp_path), "{shard}/"), url=node.url)

    @delivery.transform
    def change(value: int) -> int | None:
        if value == 7:
            raise ValueError("seven")
        return None if value == 8 else value * 10

    shown = delivery.preview(100)

    assert lines({chunk.name: chunk.body for chunk in shown.chunks}) == [n * 10 for n in range(100) if n not in (7, 8)]
    assert {chunk.name.split("/")[0] for chunk in shown.chunks} == {"shardId-000000000000", "shardId-000000000001"}
    assert [failure.record.data for failure in shown.failures] == [b"7"] and shown.dropped == 1
    assert sum(chunk.count for chunk in delivery.preview(3).chunks) <= 3
    assert bodies(tmp_path) == {}


def test_a_replay_writes_a_range_again_under_another_name_and_twice_is_once(node, tmp_path):
    delivery = Delivery(
        "lake", source="orders", sink=FileSink(str(tmp_path), "{delivery}/"), url=node.url,
        buffer=Buffer(bytes_max=40, seconds_max=0.05),
    )  # fmt: skip
    with delivery:
        until(lambda: delivery.progress.records == 100)
        with pytest.raises(InvalidUse, match="runs"):
            delivery.replay("trim_horizon")
    first = bodies(tmp_path)
    middle = datetime.now(UTC)
    with node.producer("orders") as producer:
        for number in range(100, 120):
            producer.put(number, key=str(number))

    assert delivery.replay("trim_horizon", middle, name="again") == 100
    once = bodies(tmp_path)
    assert delivery.replay("trim_horizon", middle, name="again") == 100

    assert bodies(tmp_path) == once
    assert {name: body for name, body in once.items() if name in first} == first
    assert lines({name: body for name, body in once.items() if name.startswith("again/")}) == list(range(100))
    assert delivery.replay(middle) == 20, "it may be named by itself"
    assert delivery.lag().records == 20, "no position has moved"
