"""What is done to a cluster of real processes, one kind of damage a function. Each returns when the damage is over.

Kills, stops, full and failing disks, syncs that lie, clocks that jump; as root also cut wires and lost power. A fault
that ends a process starts it again; a node whose disk lost what was synced may refuse to start, and gets an empty disk
then. Read `FAULTS` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from streamkit.client.client import AsyncClient
from streamkit.errors import StreamkitError
from streamkit.protocol import messages as m
from tests.end_to_end import partition
from tests.end_to_end.crew import Crew
from tests.end_to_end.history import History
from tests.end_to_end.kill_nodes import EtcdStore, Store
from tests.end_to_end.nodes import ClusterNode, Nodes
from tests.end_to_end.power_loss import Volume
from tests.end_to_end.recording import leaders
from tests.end_to_end.shim import Steering

PATIENCE_SECONDS = 90.0
CLOCK_MS = 3_600_000
_EIO_SECONDS_MAX = 20.0


@dataclass(slots=True)
class World:
    """A cluster, what steers its disks and clocks, and what is known of its records. network, disks: as root only."""

    cluster: Nodes
    steering: dict[str, Steering]
    history: History
    store: Store
    draw: random.Random
    network: partition.Wires | None = None
    disks: dict[str, Volume] = field(default_factory=dict)
    boot_ids: dict[str, Path] = field(default_factory=dict)
    crew: Crew | None = None
    pace: float = 1.0                      # of what may take longer or shorter

    async def victim(self) -> ClusterNode:
        """Any node, or one that leads a shard: more happens then."""
        names = sorted(self.cluster.by_name)
        if self.draw.random() < 0.6:
            with contextlib.suppress(StreamkitError):
                names = sorted({name for name in (await leaders(self.cluster)).values() if name}) or names
        return self.cluster[self.draw.choice(names)]

    async def pause(self, least: float, most: float) -> float:
        seconds = self.draw.uniform(least, least + (most - least) * self.pace)
        await asyncio.sleep(seconds)
        return seconds

    async def start(self, node: ClusterNode) -> None:
        await self.store_answers()                             # a node that starts asks the store
        if node.process is None:
            node.start()
        await asyncio.to_thread(node.wait_ready)

    async def store_answers(self) -> None:
        if isinstance(self.store, EtcdStore):
            await asyncio.to_thread(self.store.heal)

    async def whole(self) -> None:
        """Until every node holds, and may vote for, all that was committed when this was asked."""
        began, wanted = time.monotonic(), None
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(AsyncClient(node.url)) for node in self.cluster]
            while True:
                said = "nodes do not answer"
                with contextlib.suppress(StreamkitError):
                    told = [await client.call(m.DescribeCopies()) for client in clients]
                    copies = [copy for node in told if isinstance(node, m.CopiesDescribed) for copy in node.copies]
                    wanted = wanted or _committed(copies)
                    behind = _behind(copies, wanted, len(clients))
                    cluster = await clients[0].call(m.DescribeCluster())
                    assert isinstance(cluster, m.ClusterDescribed), "the answer to that"
                    if not behind and not cluster.troubles:
                        return
                    said = f"{behind}; {cluster.troubles}"
                assert time.monotonic() - began < PATIENCE_SECONDS, f"the cluster does not become whole: {said}"
                await asyncio.sleep(0.1)


def _committed(copies: list[m.CopyInfo]) -> dict[bytes, int]:
    """Shard → its high watermark."""
    ends: dict[bytes, int] = {}
    for copy in copies:
        ends[copy.shard] = max(copy.high_watermark, ends.get(copy.shard, 0))
    return ends


def _behind(copies: list[m.CopyInfo], wanted: dict[bytes, int], count: int) -> list[str]:
    """What lacks until each of `count` nodes holds all of it, and each shard is led."""
    good = Counter(
        copy.shard for copy in copies
        if copy.certain and min(copy.log_end, copy.high_watermark) >= wanted.get(copy.shard, 0)
    )  # fmt: skip
    led = {copy.shard for copy in copies if copy.role == "leader"}
    return [
        f"{shard.hex()}: {good[shard]} of {count} copies hold {end}{'' if shard in led else ', none leads'}"
        for shard, end in wanted.items() if good[shard] < count or shard not in led
    ]  # fmt: skip


Fault = Callable[[World, ClusterNode], Awaitable[str]]


async def kill(world: World, node: ClusterNode) -> str:
    await asyncio.to_thread(node.kill)
    await world.pause(0.0, 2.0)
    await world.start(node)
    return f"SIGKILL {node.name}"


async def kill_while_it_starts(world: World, node: ClusterNode) -> str:
    times = world.draw.randint(2, 4)
    for _ in range(times):
        await asyncio.to_thread(node.kill)
        node.start()
        await world.pause(0.1, 1.0)
    await world.start(node)
    return f"SIGKILL {node.name} {times} times while it starts"


async def kill_two(world: World, node: ClusterNode) -> str:
    """No majority is left: puts wait."""
    other = world.draw.choice([other for other in world.cluster if other is not node])
    await asyncio.to_thread(node.kill)
    await world.pause(0.0, 1.0)
    await asyncio.to_thread(other.kill)
    await world.pause(0.0, 1.0)
    for each in (node, other):
        await world.start(each)
    return f"SIGKILL {node.name} and {other.name}"


async def stop_shortly(world: World, node: ClusterNode) -> str:
    return await _stop(world, node, 0.1, 1.4)


async def stop_for_long(world: World, node: ClusterNode) -> str:
    """Longer than cluster.suspect_ms: the others elect."""
    return await _stop(world, node, 2.0, 8.0)


async def _stop(world: World, node: ClusterNode, least: float, most: float) -> str:
    node.pause()
    try:
        seconds = await world.pause(least, most)
    finally:
        node.resume()
    return f"SIGSTOP {node.name} for {seconds:.1f} s"


async def restart(world: World, node: ClusterNode) -> str:
    assert await asyncio.to_thread(node.terminate) == 0, f"{node.name} did not end in order"
    await world.start(node)
    return f"restart {node.name} in order"


async def fill_disk(world: World, node: ClusterNode) -> str:
    disk, before = world.steering[node.name], world.steering[node.name]["writes_failed"]
    extends = world.draw.random() < 0.7
    disk.fill(extends=extends, skipped_percent=world.draw.choice([0, 0, 50]))
    seconds = await world.pause(1.0, 5.0)
    disk.heal_disk()
    assert node.process is not None and node.process.poll() is None, f"{node.name} ended because its disk was full"
    failed = disk["writes_failed"] - before
    return f"ENOSPC at {node.name} for {seconds:.1f} s ({failed} writes failed{'' if extends else ', any write'})"


async def fail_write(world: World, node: ClusterNode) -> str:
    world.steering[node.name].fail_writes()
    return await _ends_by_itself(world, node, "EIO on a write")


async def fail_sync(world: World, node: ClusterNode) -> str:
    world.steering[node.name].fail_syncs()
    return await _ends_by_itself(world, node, "EIO on a sync")


async def _ends_by_itself(world: World, node: ClusterNode, what: str) -> str:
    """And says why."""
    assert node.process is not None, "it runs"
    began = time.monotonic()
    while (code := node.process.poll()) is None:
        assert time.monotonic() - began < _EIO_SECONDS_MAX, (
            f"{node.name} runs on after {what}: {dict(world.steering[node.name].counted())}"
        )
        await asyncio.sleep(0.02)
    node.process = None
    said = (await asyncio.to_thread(node.log.read_text))[-4000:]
    assert code != 0 and "disk.failed" in said, f"{node.name} ended with {code} after {what}, not saying why:\n{said}"
    world.steering[node.name].heal_disk()
    await world.pause(0.0, 1.0)
    await world.start(node)
    return f"{what} at {node.name}: it ended after {time.monotonic() - began:.1f} s"


async def lie_and_kill(world: World, node: ClusterNode) -> str:
    """The page cache outlives the process: nothing may be missing."""
    disk = world.steering[node.name]
    before = disk["syncs_lied"]
    disk.lie()
    await world.pause(0.5, 3.0)
    await asyncio.to_thread(node.kill)
    lies = disk["syncs_lied"] - before
    disk.heal_disk()
    await world.start(node)
    return f"{lies} syncs of {node.name} lied, then SIGKILL"


async def slow_disk(world: World, node: ClusterNode) -> str:
    milliseconds = world.draw.choice([5, 30, 200])
    world.steering[node.name].set(sync_delay_us=milliseconds * 1000)
    seconds = await world.pause(1.0, 5.0)
    world.steering[node.name].heal_disk()
    return f"syncs of {node.name} took {milliseconds} ms more for {seconds:.1f} s"


async def turn_clock(world: World, node: ClusterNode) -> str:
    """It stays there until another fault turns it again."""
    hours = world.draw.choice([-1, 1])
    world.steering[node.name].turn_clock(hours * CLOCK_MS)
    return f"the clock of {node.name} goes {hours:+d} h"


async def right_clocks(world: World, node: ClusterNode) -> str:
    for steering in world.steering.values():
        steering.turn_clock(0)
    return "all clocks are right"


async def lose_disk(world: World, node: ClusterNode) -> str:
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.wipe)
    await world.start(node)
    await world.whole()
    return f"the disk of {node.name} is lost and replaced"


async def cut_wires(world: World, node: ClusterNode) -> str:
    assert world.network is not None, "asked for as root only"
    what = await asyncio.to_thread(partition.cut, world.network, world.draw)
    try:
        seconds = await world.pause(1.0, 8.0)
    finally:
        await asyncio.to_thread(world.network.heal)
    return f"{what} for {seconds:.1f} s"


async def lose_power(world: World, node: ClusterNode) -> str:
    return await _lose_power(world, node, lying=False)


async def lie_and_lose_power(world: World, node: ClusterNode) -> str:
    """What this node acknowledged is gone. The others are left alone until it has everything again."""
    return await _lose_power(world, node, lying=True)


async def _lose_power(world: World, node: ClusterNode, *, lying: bool) -> str:
    await world.whole()
    disk, volume = world.steering[node.name], world.disks[node.name]
    before = disk["syncs_lied"]
    if lying:
        disk.lie()
    await world.pause(0.5, 3.0)
    node.pause()                           # without power nobody says that a disk has failed
    await asyncio.to_thread(volume.cut)
    await asyncio.to_thread(node.kill)
    lies = disk["syncs_lied"] - before
    disk.heal_disk()
    await asyncio.to_thread(volume.unmount)
    await asyncio.to_thread(volume.mount)
    world.boot_ids[node.name].write_text(f"{uuid.uuid4()}\n")
    words = f"{node.name} loses power" + (f", {lies} syncs had lied" if lying else "")
    try:
        await world.start(node)
    except AssertionError:
        if not lying:
            raise
        await asyncio.to_thread(node.refused)
        await asyncio.to_thread(node.wipe)
        words += "; it refused what was left, and began with an empty disk"
        await world.start(node)
    await world.whole()
    return words


async def lose_all_power(world: World, node: ClusterNode) -> str:
    """At one moment; what was synced is there on every disk."""
    for each in world.cluster:
        each.pause()
    for volume in world.disks.values():
        await asyncio.to_thread(volume.cut)
    for each in world.cluster:
        await asyncio.to_thread(each.kill)
        await asyncio.to_thread(world.disks[each.name].unmount)
        await asyncio.to_thread(world.disks[each.name].mount)
        world.boot_ids[each.name].write_text(f"{uuid.uuid4()}\n")
        each.start()
    for each in world.cluster:
        await world.start(each)
    return "all nodes lose power"


async def trouble_store(world: World, node: ClusterNode) -> str:
    assert isinstance(world.store, EtcdStore), "a file needs no process"
    await asyncio.to_thread(world.store.trouble, world.draw)
    paused = world.store.is_paused
    await world.pause(0.5, 6.0)
    await world.store_answers()
    return "etcd is stopped, and goes on" if paused else "etcd is killed, and is back"


async def trouble_store_and_kill(world: World, node: ClusterNode) -> str:
    """Nobody is elected until it answers again."""
    assert isinstance(world.store, EtcdStore), "a file needs no process"
    await asyncio.to_thread(world.store.trouble, world.draw)
    await asyncio.to_thread(node.kill)
    await world.pause(0.0, 3.0)
    await world.start(node)
    return f"etcd is in trouble, SIGKILL {node.name}"


async def kill_worker(world: World, node: ClusterNode) -> str:
    assert world.crew is not None, "there are workers"
    name = world.draw.choice(world.crew.names)
    world.crew.kill(name)
    await world.pause(0.0, 4.0)
    world.crew.start(name)
    return f"SIGKILL worker {name}"


async def stop_worker(world: World, node: ClusterNode) -> str:
    """Longer than its membership lasts: what it has in its hands belongs to the other one when it wakes."""
    assert world.crew is not None, "there are workers"
    name = world.draw.choice(world.crew.names)
    world.crew.signal(name, signal.SIGSTOP)
    seconds = await world.pause(2.0, 8.0)
    world.crew.signal(name, signal.SIGCONT)
    return f"SIGSTOP worker {name} for {seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Kind:
    """weight: how often, against the others'. needs: "", "workers", "etcd", "network" or "disks"."""

    act: Fault
    weight: int
    needs: str = ""


FAULTS = {
    "kill": Kind(kill, 6), "kill_while_it_starts": Kind(kill_while_it_starts, 2), "kill_two": Kind(kill_two, 1),
    "stop_shortly": Kind(stop_shortly, 3), "stop_for_long": Kind(stop_for_long, 3), "restart": Kind(restart, 3),
    "fill_disk": Kind(fill_disk, 4), "fail_write": Kind(fail_write, 2), "fail_sync": Kind(fail_sync, 3),
    "lie_and_kill": Kind(lie_and_kill, 3), "slow_disk": Kind(slow_disk, 2), "turn_clock": Kind(turn_clock, 4),
    "right_clocks": Kind(right_clocks, 1), "lose_disk": Kind(lose_disk, 1),
    "cut_wires": Kind(cut_wires, 6, "network"), "lose_power": Kind(lose_power, 3, "disks"),
    "lie_and_lose_power": Kind(lie_and_lose_power, 3, "disks"), "lose_all_power": Kind(lose_all_power, 2, "disks"),
    "kill_worker": Kind(kill_worker, 2, "workers"), "stop_worker": Kind(stop_worker, 2, "workers"),
    "trouble_store": Kind(trouble_store, 3, "etcd"), "trouble_store_and_kill": Kind(trouble_store_and_kill, 3, "etcd"),
}  # fmt: skip
# What may befall two nodes at a time: no majority is left, but nothing is damaged.
PAIRED = (
    "kill", "stop_shortly", "stop_for_long", "restart", "fill_disk", "fail_write", "fail_sync", "lie_and_kill",
    "slow_disk", "turn_clock",
)  # fmt: skip

