"""All faults at once, drawn from a seed, under a load that notes everything; then the notes are checked.

    python -m tests.end_to_end.torture --seconds 3600
    python -m tests.end_to_end.torture --seconds 600 --seed 7 --store etcd
    python -m tests.end_to_end.torture --seconds 120 --only kill,fail_sync

Two producers, a reader of each shard and two workers; three nodes, mostly one victim at a time; after each fault puts
must go on in every shard. As root each node has a file system of its own whose power can be cut and, with the SQLite
store, a network namespace whose wires can be cut; `--plain` does without. At the end everything is healed, every put
gets its answer, all records are read back, and the copies are compared byte for byte. What is done is drawn from the
seed, when it happens is not: a run cannot be replayed to the millisecond. Exit code 1: something was lost,
duplicated, reordered, stale or never put, or a node did not do what it promises; the folder with logs and data is
then kept.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.errors import StreamkitError
from streamkit.model.sequence import parse_sequence_number
from streamkit.model.shard import Shard
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol.frames import Fetched
from tests.end_to_end import kill_nodes
from tests.end_to_end.crew import crew
from tests.end_to_end.faults import FAULTS, PAIRED, PATIENCE_SECONDS, World
from tests.end_to_end.history import History, Stored
from tests.end_to_end.kill_broker import STREAM
from tests.end_to_end.nodes import ClusterNode, Placing, nodes
from tests.end_to_end.partition import NAMES, wires
from tests.end_to_end.power_loss import volumes
from tests.end_to_end.processes import end_in_order
from tests.end_to_end.recording import copies_agree, create_stream
from tests.end_to_end.shim import Steering

SHARDS = 4
_NODE_KIB_MAX = 4 << 20                    # of addresses, for each node
_HARNESS_BYTES_MAX = 4 << 30
_WAITING_MAX = 2_000
_PAIRED = 0.15
_ANSWER_SECONDS_MAX = 150.0                # a put may wait for its delivery timeout


@dataclass(slots=True)
class Outcome:
    """faults: (kind, seconds in which some shard acknowledged nothing). violations: in words; none is good."""

    seed: int
    seconds: float = 0.0
    faults: list[tuple[str, float]] = field(default_factory=list)
    history: History = field(default_factory=lambda: History(SHARDS))
    violations: list[str] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    node_bytes_max: int = 0

    def summary(self) -> str:
        notes, pauses = self.history, sorted(pause for _, pause in self.faults) or [0.0]
        return (
            f"seed {self.seed}: {len(self.faults)} faults in {self.seconds:.0f} s; put {notes.put}, acknowledged "
            f"{notes.acknowledged}, refused or unknown {notes.failed}; {notes.reads} reads, {notes.stale_reads} of "
            f"them behind by at most {notes.stale_seconds_max:.2f} s; a shard stood still for "
            f"{statistics.median(pauses):.2f} s (median), {pauses[-1]:.2f} s (longest); a node took "
            f"{self.node_bytes_max >> 20} MiB at most; {len(self.violations) or 'no'} violations"
        )


# ---- the load ---------------------------------------------------------------------------------------------------


async def produce(name: str, url: str, history: History, rate: float, stopping: asyncio.Event) -> None:
    """Puts until told to stop; returns when every put has its answer."""
    room = asyncio.Semaphore(_WAITING_MAX)
    following: set[asyncio.Task[None]] = set()

    async def follow(number: int, handle: object) -> None:
        try:
            result = await handle
        except StreamkitError as error:
            history.note_failed(name, number, f"{type(error).__name__}: {error}"[:200])
        else:
            shard, at = int(result.shard.removeprefix("shardId-")), result.sequence_number
            history.note_stored(name, number, shard, parse_sequence_number(at).sequence if at else None)
        finally:
            room.release()

    producer = AsyncProducer(STREAM, url=url, linger_ms=5)
    try:
        while not stopping.is_set():
            for _ in range(4):
                await room.acquire()
                number, key, value = history.begin_put(name)
                task = asyncio.ensure_future(follow(number, await producer.put(value, key=key)))
                following.add(task)
                task.add_done_callback(following.discard)
            await asyncio.sleep(4 / rate)
        await producer.flush()
        while following:
            await asyncio.wait(following)
    finally:
        for task in following:             # none, unless this was interrupted
            task.cancel()
        with contextlib.suppress(StreamkitError):
            await producer.close(0)


async def read(url: str, shard: Shard, history: History, stopping: asyncio.Event) -> None:
    """Follows one shard from its beginning, and notes what every answer said."""
    position = 0
    async with AsyncClient(url) as client:
        while not stopping.is_set():
            began = time.monotonic()
            try:
                fetched = await client.fetch(shard, position, wait_ms=100)
            except StreamkitError:
                await asyncio.sleep(0.05)
                continue
            records = [record for record in _records(fetched, position) if record.sequence >= position]
            history.note_read(shard.ordinal, began, fetched.high_watermark, records)
            position = max(position, fetched.next_sequence)


def _records(fetched: Fetched, position: int) -> Iterator[Stored]:
    for raw in fetched.batches:
        batch = Batch(raw, None, 0)
        values = [None] * len(batch) if batch.is_control else batch.values()
        for sequence, value in enumerate(values, batch.base_sequence):
            if sequence >= position:
                yield Stored(sequence, value, batch.append_time_ms)


async def read_back(url: str, history: History) -> None:
    """Every shard from its leader, whole, and checked."""
    async with AsyncClient(url) as client:
        for shard in (await client.describe_stream(STREAM)).shards:
            records: list[Stored] = []
            began, position = time.monotonic(), 0
            while True:
                try:
                    fetched = await client.fetch(shard, position, wait_ms=0)
                except StreamkitError:
                    if time.monotonic() - began > PATIENCE_SECONDS:
                        raise
                    await asyncio.sleep(0.1)
                    continue
                records += _records(fetched, position)
                position = fetched.next_sequence
                if position >= fetched.high_watermark:
                    break
            history.check(shard.ordinal, records)
    history.finish()


@contextlib.asynccontextmanager
async def load(world: World, folder: Path, *, producers: int, rate: float, workers: bool) -> AsyncIterator[None]:
    """rate: records a second, of each producer. At the end: every record put has its answer, all are checked."""
    history = world.history
    await create_stream(world.cluster, SHARDS)
    url = ",".join(node.url for node in world.cluster)
    async with AsyncClient(url) as client:
        shards = (await client.describe_stream(STREAM)).shards
    enough, read_enough = asyncio.Event(), asyncio.Event()
    putting = [asyncio.create_task(produce(f"p{n}", url, history, rate, enough)) for n in range(producers)]
    reading = [asyncio.create_task(read(url, shard, history, read_enough)) for shard in shards]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_cancel, [*putting, *reading])
        if workers:
            world.crew = stack.enter_context(crew(url, STREAM, folder, history))
        yield
        enough.set()
        await asyncio.wait_for(asyncio.gather(*putting), _ANSWER_SECONDS_MAX)
        read_enough.set()
        await asyncio.wait_for(asyncio.gather(*reading), PATIENCE_SECONDS)
        await read_back(url, history)
        if world.crew is not None:
            await world.crew.finish(PATIENCE_SECONDS)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def goes_on(history: History, count: int = 5) -> None:
    """Until every shard acknowledged that many more records."""
    began, first = time.monotonic(), history.counts
    while min(now - before for now, before in zip(history.counts, first, strict=True)) < count:
        assert time.monotonic() - began < PATIENCE_SECONDS, (
            f"puts do not go on: {first} and {PATIENCE_SECONDS:.0f} s later {history.counts} acknowledged by shard; "
            f"refused: {history.errors.most_common(3)}"
        )
        await asyncio.sleep(0.01)


# ---- the run ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def made_world(folder: Path, kind: str, outcome: Outcome, *, plain: bool) -> Iterator[World]:
    """Nodes that run, each under the shim. Everything is gone when the block ends."""
    bounded = ("sh", "-c", f'ulimit -v {_NODE_KIB_MAX} && exec "$@"', "sh")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(kill_nodes.store(kind, folder))
        disks = {} if plain else stack.enter_context(volumes(folder, NAMES))
        network = None if plain or kind == "etcd" else stack.enter_context(wires())      # etcd listens on loopback

        def placing(name: str) -> Placing:
            if network is None:
                return Placing(command=bounded)
            # Not `ip netns exec`: it would take mounts with it, and no disk that failed could be mounted anew.
            entering = ("nsenter", f"--net=/run/netns/{network.namespace(name)}")
            return Placing(network.address(name), (*bounded, *entering))

        cluster = stack.enter_context(nodes(folder, store.url, NAMES, start=False, placing=placing))
        world = World(cluster, {}, outcome.history, store, random.Random(outcome.seed), network, disks)
        for node in cluster:
            if disks:
                node.data_dir, node.notes_dir = disks[node.name].mounted / "data", folder
            boot_id = world.boot_ids[node.name] = folder / f"{node.name}.boot_id"
            boot_id.write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
            steering = Steering(folder / f"{node.name}.control", node.data_dir, boot_id=boot_id)
            world.steering[node.name] = steering
            node.environment = {**steering.environment, "STREAMKIT_STORAGE__SEGMENT_BYTES": str(1 << 20)}
        cluster.start()
        yield world


def possible(world: World, only: Collection[str] = ()) -> list[str]:
    """The kinds of fault that can happen here, each as often as it weighs, like a deck of cards."""
    there = {"": True, "workers": world.crew is not None, "etcd": isinstance(world.store, kill_nodes.EtcdStore),
             "network": world.network is not None, "disks": bool(world.disks)}  # fmt: skip
    return [
        name for name, kind in FAULTS.items() if there[kind.needs] and (not only or name in only)
        for _ in range(kind.weight)
    ]  # fmt: skip


async def harm(world: World, kind: str, outcome: Outcome, began: float, *, paired: float = 0.0) -> None:
    """One fault, and puts go on. Raises AssertionError when something was not as promised.

    paired: how likely another one befalls another node at the same time.
    """
    world.history.watch_gaps()
    at, node = time.monotonic() - began, await world.victim()
    acts = [FAULTS[kind].act(world, node)]
    if kind in PAIRED and world.draw.random() < paired:
        other = world.draw.choice([other for other in world.cluster if other is not node])
        acts.append(FAULTS[world.draw.choice(PAIRED)].act(world, other))
    what = ", and ".join(await asyncio.gather(*acts))
    await goes_on(world.history)
    pause = world.history.longest_gap
    if world.crew is not None:
        world.crew.look()
    outcome.faults.append((kind, pause))
    outcome.node_bytes_max = max([outcome.node_bytes_max, *(_peak_bytes(node) for node in world.cluster)])
    print(f"{at:8.1f} s  {what}; a shard stood still for {pause:.2f} s", flush=True)


def _peak_bytes(node: ClusterNode) -> int:
    if node.process is None:
        return 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


async def heal(world: World) -> None:
    """Nothing is wrong any more; every node runs."""
    if world.network is not None:
        await asyncio.to_thread(world.network.heal)
    for node in world.cluster:
        world.steering[node.name].heal_disk()
        world.steering[node.name].turn_clock(0)
        await world.start(node)
    await world.whole()


async def run(
    folder: Path, seconds: float, seed: int, *, store: str = "sqlite", plain: bool = True, only: Collection[str] = (),
    each_once: bool = False, producers: int = 2, rate: float = 200.0, pace: float = 1.0, workers: bool = True,
) -> Outcome:  # fmt: skip
    """each_once: every kind that is possible here, once, in a drawn order, for however long that takes."""
    outcome, began = Outcome(seed), time.monotonic()
    with made_world(folder, store, outcome, plain=plain) as world:
        world.pace = pace
        try:
            async with load(world, folder, producers=producers, rate=rate, workers=workers):
                kinds = possible(world, only)
                outcome.history.watch_gaps()
                await goes_on(outcome.history)
                if each_once:
                    in_turn = sorted(set(kinds))
                    world.draw.shuffle(in_turn)
                    for kind in in_turn:
                        await harm(world, kind, outcome, began)
                deck: list[str] = []
                while not each_once and time.monotonic() - began < seconds:
                    if not deck:           # every kind comes, however short the run
                        deck = world.draw.sample(kinds, len(kinds))
                    await harm(world, deck.pop(), outcome, began, paired=_PAIRED)
                    await world.pause(0.0, 1.0)
                await heal(world)
                await goes_on(outcome.history)
            for node in world.cluster:
                assert await asyncio.to_thread(node.terminate) == 0, f"{node.name} did not end in order"
            outcome.violations += await copies_agree([node.data_dir for node in world.cluster])
        except (AssertionError, StreamkitError, TimeoutError) as error:
            outcome.violations.append(f"{type(error).__name__}: {error}")
        outcome.violations += outcome.history.words
        for steering in world.steering.values():
            for name, count in steering.counted().items():
                outcome.counted[name] = outcome.counted.get(name, 0) + count
    outcome.seconds = time.monotonic() - began
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for how long (default 60)")
    parser.add_argument("--seed", type=int, default=None, help="of what is done (default: drawn)")
    parser.add_argument("--store", choices=["sqlite", "etcd"], default="sqlite", help="where the nodes agree")
    parser.add_argument("--rate", type=float, default=200, help="records a second of each producer (default 200)")
    parser.add_argument("--only", default="", help=f"kinds of fault, with commas between them: {', '.join(FAULTS)}")
    parser.add_argument("--plain", action="store_true", help="no file systems and no namespaces, though this is root")
    arguments = parser.parse_args()
    only = [kind for kind in arguments.only.split(",") if kind]
    if unknown := set(only) - set(FAULTS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    end_in_order()
    resource.setrlimit(resource.RLIMIT_AS, (_HARNESS_BYTES_MAX, resource.getrlimit(resource.RLIMIT_AS)[1]))
    plain = arguments.plain or os.geteuid() != 0
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}{', without cut wires and lost power: that needs root' if os.geteuid() else ''}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="streamkit-torture-"))
    outcome = None
    try:
        outcome = asyncio.run(
            run(folder, arguments.seconds, seed, store=arguments.store, plain=plain, only=only, rate=arguments.rate)
        )
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"error: {error}; --plain does without file systems and namespaces of its own")
        return 2
    except KeyboardInterrupt:
        print("interrupted; processes, mounts and namespaces are gone")
        return 130
    finally:
        if outcome is None or not outcome.violations:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"counted: {outcome.counted}; refusals: {outcome.history.errors.most_common(5)}")
    for words in outcome.violations[:40]:
        print(words)
    if outcome.violations:
        print(f"logs and data are kept in {folder}")
    print(outcome.summary())
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
