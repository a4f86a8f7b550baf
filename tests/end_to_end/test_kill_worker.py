"""A worker dies, or only stops: another goes on from its checkpoint, and the old owner has no say any more."""

import asyncio
import contextlib
import signal
import time

import pytest

from streamkit.client.client import AsyncClient
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol import messages as m
from tests.end_to_end.processes import broker, child
from tests.end_to_end.worker_process import APPLICATION, MEMBERSHIP_MS, STREAM

SHARDS = 4
PATIENCE_SECONDS = 30.0


class Trial:
    """A broker, a stream that is being written, and the notes of the workers."""

    def __init__(self, client, path):
        self.client = client
        self.path = path

    def lines(self):
        return [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def processed(self, worker=None):
        """{(shard, sequence)} that the worker, or anybody, was given."""
        return {
            (shard, int(rest[0])) for name, shard, *rest in self.lines() if len(rest) == 1 and rest[0].isdigit()
            and worker in (None, name)
        }

    async def leases(self):
        answer = await self.client.call(m.DescribeApplication(APPLICATION))
        return {lease.ordinal: lease for lease in answer.leases}

    async def owners(self):
        return {lease.owner for lease in (await self.leases()).values()}

    async def until(self, what, condition):
        began = time.monotonic()
        while not await condition():
            assert time.monotonic() - began < PATIENCE_SECONDS, f"waited in vain: {what}"
            await asyncio.sleep(0.05)
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def trial(tmp_path):
    with broker(tmp_path / "data") as served:
        async with AsyncClient(served.url) as client:
            await client.create_stream(STREAM, shards=SHARDS)
            stopping = asyncio.Event()

            async def load():
                async with AsyncProducer(STREAM, url=served.url, linger_ms=1) as producer:
                    number = 0
                    while not stopping.is_set():
                        await producer.put(b"%d" % number, key=f"k{number % 32}")
                        number += 1
                        await asyncio.sleep(0.005)

            writing = asyncio.create_task(load())
            begun = Trial(client, tmp_path / "notes")
            begun.url = served.url
            begun.stop_load = stopping.set
            try:
                yield begun
            finally:
                stopping.set()
                await asyncio.wait_for(writing, PATIENCE_SECONDS)


def worker(begun, name, tmp_path):
    return child("tests.end_to_end.worker_process", begun.url, name, str(begun.path), log=tmp_path / f"{name}.log")


async def both_at_work(begun):
    async def shared():
        with contextlib.suppress(Exception):
            return {"ann", "bob"} <= await begun.owners() and all(begun.processed(name) for name in ("ann", "bob"))
        return False

    await begun.until("ann and bob share the shards", shared)


async def bob_owns_everything(begun):
    async def alone():
        return await begun.owners() == {"bob"}

    return await begun.until("bob takes over", alone)


async def everything_is_processed(begun):
    begun.stop_load()
    await asyncio.sleep(0.2)

    async def caught_up():
        return all(lease.checkpoint >= lease.high_watermark for lease in (await begun.leases()).values())

    await begun.until("checkpoints reach the end", caught_up)
    states = await begun.client.describe_shards(STREAM)
    stream = await begun.client.describe_stream(STREAM)
    processed = begun.processed()
    for shard, state in zip(stream.shards, states, strict=True):
        missing = [sequence for sequence in range(state.high_watermark) if (shard.id, sequence) not in processed]
        assert len(missing) <= 1, f"{shard.id} misses {missing[:10]}"      # one: the epoch's own batch, for no reader


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
async def test_another_worker_takes_over_from_the_checkpoint_and_the_old_owner_is_refused(tmp_path, how):
    async with trial(tmp_path) as begun:
        with worker(begun, "ann", tmp_path) as ann, worker(begun, "bob", tmp_path):
            await both_at_work(begun)
            before = {n: lease for n, lease in (await begun.leases()).items() if lease.owner == "ann"}
            shards = {shard.ordinal: shard for shard in (await begun.client.describe_stream(STREAM)).shards}

            ann.send_signal(getattr(signal, how))
            seconds = await bob_owns_everything(begun)

            assert seconds < MEMBERSHIP_MS / 1000 + 5
            began = {}

            async def has_begun():                 # the coordinator knows of a grant before the worker acts on it
                lines = [line for line in begun.lines() if line[0] == "bob" and line[2] == "begins"]
                began.update({line[1]: int(line[3]) for line in lines})
                return all(shards[ordinal].id in began for ordinal in before)

            await begun.until("bob begins each", has_begun)
            for ordinal, lease in before.items():
                assert began[shards[ordinal].id] >= lease.checkpoint, "bob goes on from ann's checkpoint"
            late = tuple(
                m.CheckpointItem(shards[ordinal].uuid, lease.lease_epoch, 1_000_000, lease.checkpoint + 1)
                for ordinal, lease in before.items()
            )
            answer = await begun.client.call(m.Checkpoint(APPLICATION, "ann", late))
            assert set(answer.results) == {"fenced"}

            if how == "SIGSTOP":
                await ann_comes_back(begun, ann, {(shards[n].id, lease.lease_epoch) for n, lease in before.items()})
            await everything_is_processed(begun)


async def ann_comes_back(begun, ann, old_leases):
    """A zombie: it must notice by itself that its leases are gone, before it hands out anything more."""
    noted = len(begun.lines())
    ann.send_signal(signal.SIGCONT)

    async def noticed():
        lost = {line[1] for line in begun.lines()[noted:] if line[0] == "ann" and line[2] == "lost"}
        return {shard for shard, _ in old_leases} <= lost

    await begun.until("ann notices", noticed)
    batches: dict[str, int] = {}
    over = set()
    for name, shard, what, *_ in begun.lines()[noted:]:
        if name == "ann" and what in ("lost", "begins"):       # what follows belongs to a new lease
            over.add(shard)
        elif name == "ann" and what == "batch" and shard not in over:
            batches[shard] = batches.get(shard, 0) + 1
    assert all(count == 1 for count in batches.values()), "no more than the batch that was in its hands"
