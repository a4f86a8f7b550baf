"""Lease operations: a renewal and a checkpoint of each of 1,000 leases are 2,000 operations.

`kernel`: the rows alone. `coordinator`: whole messages through the coordinator, each checkpoint a fact appended to a
log in memory, so that what is measured is the work and not a disk. 1000x1: the checkpoints in one message, as a worker
sends them; 1x1000: in messages of one lease each. The heartbeat is one message in both: it belongs to the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamkit._core.lease_table import LeaseTable
from streamkit.broker.coordinator import Coordinator
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol.messages import Checkpoint, CheckpointItem, Heartbeat, JoinApplication, Membership

LEASES = 1_000
SHARDS = tuple(
    Shard(ordinal=n, uuid=n.to_bytes(4, "big") * 4, hash_start=low, hash_end=high, created_ms=0)
    for n, (low, high) in enumerate(even_ranges(LEASES))
)


class Memory:
    """The world of one coordinator: a log, a stream, a clock."""

    def __init__(self) -> None:
        self.bytes = 0

    async def append(self, records: list[bytes]) -> int:
        self.bytes += sum(map(len, records))
        return 0

    async def replay(self) -> AsyncIterator[bytes]:
        for record in ():
            yield record

    async def trim(self, before: int) -> None:
        self.bytes = 0

    def stream(self, name: str) -> StreamDescription:
        config = StreamConfig(shards=LEASES)
        return StreamDescription(
            name=name, status=StreamStatus.ACTIVE, config=config, created_ms=0, map_version=1, shards=SHARDS
        )

    def high_watermark(self, shard: bytes) -> int:
        return 1 << 40

    def resolve(self, shard: bytes, kind: str, value: int) -> int:
        return 0

    def append_time_of(self, shard: bytes, sequence: int) -> int | None:
        return None

    def now_ms(self) -> int:
        return 0

    def monotonic_ms(self) -> int:
        return 0


def items(number: int) -> tuple[CheckpointItem, ...]:
    return tuple(CheckpointItem(shard.uuid, 1, number, 10 * number) for shard in SHARDS)


def bench_leases_kernel_1000x1(benchmark: Any) -> None:
    table = LeaseTable()
    for shard in SHARDS:
        table.add(shard.uuid, 0)
        table.grant(shard.uuid, 7, 1)
    owned = tuple((shard.uuid, 1) for shard in SHARDS)
    rounds = iter(range(1, 1 << 30))

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (items(next(rounds)),), {}

    def renew_and_checkpoint(checkpoints: tuple[CheckpointItem, ...]) -> tuple[int, set[str]]:
        _, _, held = table.renew(7, owned)
        results, _ = table.checkpoint(checkpoints, 0)
        return held, set(results)

    benchmark.extra_info["operations"] = 2 * LEASES
    assert benchmark.pedantic(renew_and_checkpoint, setup=prepare, rounds=200) == (LEASES, {"ok"})


@pytest.mark.parametrize(("leases_each", "name"), [(LEASES, "1000x1"), (1, "1x1000")])
def bench_leases_coordinator(benchmark: Any, leases_each: int, name: str) -> None:
    loop = asyncio.new_event_loop()
    memory = Memory()
    coordinator = Coordinator(memory, memory, memory)
    loop.run_until_complete(coordinator.open())
    joined = loop.run_until_complete(coordinator.handle(JoinApplication("app", "w", ("s",), "trim_horizon"), 1))
    assert isinstance(joined, Membership)
    owned = tuple((grant.shard.uuid, grant.lease_epoch) for grant in joined.granted)
    rounds = iter(range(1, 1 << 30))

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        all_items = items(next(rounds))
        parts = [all_items[at : at + leases_each] for at in range(0, LEASES, leases_each)]
        return ([Checkpoint("app", "w", part) for part in parts],), {}

    async def renew_and_checkpoint(checkpoints: list[Checkpoint]) -> int:
        view = await coordinator.handle(Heartbeat("app", "w", joined.session, owned), 1)
        assert isinstance(view, Membership) and not view.granted and not view.lost
        answers = await asyncio.gather(*(coordinator.handle(message, 1) for message in checkpoints))
        return sum(result == "ok" for answer in answers for result in answer.results)

    def run(checkpoints: list[Checkpoint]) -> int:
        return loop.run_until_complete(renew_and_checkpoint(checkpoints))

    benchmark.extra_info["operations"] = 2 * LEASES
    try:
        assert benchmark.pedantic(run, setup=prepare, rounds=30) == LEASES
    finally:
        loop.run_until_complete(coordinator.close())
        loop.close()
