"""Whoever does harm: a few acts at drawn moments, then nothing more, so that all can be seen to recover.

    busy ──▶ (act, pause)* ──▶ `heal`: every fault is lifted, whoever is stopped goes on, whoever is dead is started

Acts only do the harm; `Cluster.supervise` starts what died, as an operator's service manager would.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial

from streamkit.simulator.cluster import Cluster, Place
from streamkit.simulator.disk import DiskFaults
from streamkit.simulator.network import NetworkFaults
from streamkit.simulator.workload import Workload
from streamkit.simulator.world import World

_DAY_MS = 86_400_000


class Nemesis:
    """Draws what to do from the world's generator; each act is named in `ACTS` of faults.py."""

    def __init__(self, world: World, cluster: Cluster, workload: Workload) -> None:
        self.world = world
        self.cluster = cluster
        self.workload = workload
        self.draw = random.Random(world.draw.getrandbits(64))
        self._sync_seconds = world.faults.disk.sync_seconds
        self._later: list[asyncio.Task[None]] = []
        self._acts: dict[str, Callable[[], None]] = {
            "kill_node": self.kill_node,
            "power_loss": self.power_loss,
            "crash_at_write": self.crash_at_write,
            "stop_node": self.stop_node,
            "orderly_restart": self.orderly_restart,
            "break_connections": self.break_connections,
            "stall_link": self.stall_link,
            "kill_worker": self.kill_worker,
            "stop_worker": self.stop_worker,
            "kill_producer": self.kill_producer,
            "stop_producer": self.stop_producer,
            "clock_jump": self.clock_jump,
            "disk_full": self.disk_full,
            "sync_fails": self.sync_fails,
            "slow_disk": self.slow_disk,
        }

    async def harm(self) -> None:
        """All acts of the run, spread over its busy time."""
        faults = self.world.faults
        if faults.rot:
            self._after(self.draw.random() * faults.busy_seconds, self.rot)
        if not faults.acts:
            return
        names, weights = list(faults.acts), list(faults.acts.values())
        for _ in range(faults.act_count):
            await asyncio.sleep(self.draw.random() * 2 * faults.busy_seconds / (faults.act_count + 1))
            act = self.draw.choices(names, weights)[0]
            self.cluster.note(act)
            self._acts[act]()

    async def heal(self) -> None:
        """Nothing bad happens after this."""
        for task in self._later:
            await task
        world = self.world
        self.cluster.note("heal")
        for name in NetworkFaults.__dataclass_fields__:
            if name in ("slow", "broken", "refused", "cut_up"):
                setattr(world.network.faults, name, 0.0)
        quiet = DiskFaults()
        for disk in world.disks.values():
            disk.crash_at = None
            disk.faults.sync_fails = disk.faults.slow = 0.0
            disk.faults.capacity_bytes = quiet.capacity_bytes

    def _after(self, seconds: float, undo: Callable[[], None]) -> None:
        async def later() -> None:
            await asyncio.sleep(seconds)
            undo()

        self._later.append(asyncio.get_running_loop().create_task(later()))

    def _run(self, work: Awaitable[None]) -> None:
        async def later() -> None:
            await work

        self._later.append(asyncio.get_running_loop().create_task(later()))

    def _short(self) -> float:
        return self.draw.choice((0.05, 0.5, 2.0)) * (0.5 + self.draw.random())

    def place(self) -> Place:
        """Whose turn it is."""
        places = self.cluster.places
        return places[0] if len(places) == 1 else self.draw.choice(places)

    # ---- the node -------------------------------------------------------------------------------------------------

    def kill_node(self) -> None:
        self.world.kill(self.place().process)

    def power_loss(self) -> None:
        self.world.lose_power(self.place().name)

    def rot(self) -> None:
        """A few bits flip while nobody looks."""
        place = self.place()
        self.world.kill(place.process)
        disk = self.world.disk(place.name)
        files = [(path, size) for path, size in disk.files().items() if size]
        for _ in range(self.draw.choice((1, 1, 3))):
            path, size = self.draw.choice(files)
            position = self.draw.randrange(size)
            self.cluster.note(f"rot {path} at {position}")
            disk.rot(path, position, 1 << self.draw.randrange(8))

    def crash_at_write(self) -> None:
        place = self.place()
        disk = self.world.disk(place.name)
        power = self.draw.random() < 0.7
        disk.crash_at = disk.steps + self.draw.choice((1, 3, 10, 40)) + self.draw.randint(0, 5)
        disk.crash = partial(self.world.lose_power, place.name) if power else partial(self._kill, place)

    def _kill(self, place: Place) -> None:
        self.world.kill(place.process)

    def stop_node(self) -> None:
        process = self.place().process
        self.world.stop(process)
        self._after(self._short(), lambda: self.world.resume(process))

    def orderly_restart(self) -> None:
        self._run(self.place().stop_orderly())

    # ---- the network ----------------------------------------------------------------------------------------------

    def break_connections(self) -> None:
        self.world.network.break_some(self.draw.choice((0.3, 1.0)))

    def stall_link(self) -> None:
        client = self.draw.choice(self.workload.machines())
        node = self.place().name
        links = [(client, node), (node, client)]
        if self.draw.random() < 0.5:
            links = [self.draw.choice(links)]
        for link in links:
            self.world.network.stall(*link, True)

        def lift() -> None:
            for link in links:
                self.world.network.stall(*link, False)

        self._after(self._short(), lift)

    # ---- clients --------------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        self.workload.kill_worker(self.draw)

    def stop_worker(self) -> None:
        process = self.draw.choice(self.workload.worker_processes())
        self.world.stop(process)
        self._after(self.draw.choice((0.3, 1.5, 4.0)), lambda: self.world.resume(process))

    def kill_producer(self) -> None:
        self.workload.kill_producer(self.draw)

    def stop_producer(self) -> None:
        process = self.draw.choice(self.workload.producer_processes())
        self.world.stop(process)
        self._after(self._short(), lambda: self.world.resume(process))

    # ---- the rest of the world ------------------------------------------------------------------------------------

    def clock_jump(self) -> None:
        milliseconds = self.draw.choice((-3 * _DAY_MS, -60_000, -500, 500, 3_600_000, _DAY_MS))
        self.world.machine_clock(self.place().name).jump(milliseconds)

    def disk_full(self) -> None:
        disk = self.world.disk(self.place().name)
        disk.faults.capacity_bytes = disk.used_bytes + self.draw.choice((0, 1000, 30_000))

        def free() -> None:
            disk.faults.capacity_bytes = DiskFaults().capacity_bytes

        self._after(self._short(), free)

    def sync_fails(self) -> None:
        """The node ends itself or stops appending; either way somebody restarts it after a while."""
        place = self.place()
        disk = self.world.disk(place.name)
        disk.faults.sync_fails = 1.0
        process = place.process

        def replace() -> None:
            disk.faults.sync_fails = 0.0
            self.world.kill(process)

        self._after(0.2 + self._short(), replace)

    def slow_disk(self) -> None:
        disk = self.world.disk(self.place().name)
        disk.faults.sync_seconds = 0.2

        def restore() -> None:
            disk.faults.sync_seconds = self._sync_seconds

        self._after(self._short(), restore)
