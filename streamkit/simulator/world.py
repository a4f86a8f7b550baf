"""One seed's world: machines with clocks and disks, one network, and the `Runtime` each process is given.

Everything random is drawn from generators that the seed fixes, one for each part of the world, so that one part
asking more often does not change what the others get.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.disk import DiskOfProcess, SimulatedDisk
from streamkit.simulator.faults import Faults
from streamkit.simulator.loop import Process, SimulatedLoop
from streamkit.simulator.network import SimulatedNetwork

T = TypeVar("T")

EPOCH_MS = 1_760_000_000_000           # what every wall clock shows when the world begins


class MachineClock:
    """`runtime.Clock` of one machine: the wall clock can be set, the other never falls and counts time asleep."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.wall_ms = EPOCH_MS
        self.asleep_ms = 0

    def now_ms(self) -> int:
        return self.wall_ms + int(self._loop.time() * 1000)

    def monotonic_ms(self) -> int:
        return 1_000_000 + self.asleep_ms + int(self._loop.time() * 1000)

    def jump(self, milliseconds: int) -> None:
        self.wall_ms += milliseconds

    def sleep(self, milliseconds: int) -> None:
        """The machine was suspended that long: both clocks say so, and no timer of the loop has moved."""
        self.wall_ms += milliseconds
        self.asleep_ms += milliseconds


class SimulatedRandom:
    """`runtime.Random` of one process."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def uniform(self) -> float:
        return self._draw.random()

    def bits(self, count: int) -> int:
        return self._draw.getrandbits(count)

    def uuid(self) -> bytes:
        return self._draw.randbytes(16)


class SimulatedExecutor:
    """`runtime.Executor`: the work is done here, a virtual moment later."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        await asyncio.sleep(self._draw.random() * 0.0005)
        result = work(*args)
        await asyncio.sleep(self._draw.random() * 0.0002)
        return result


class World:
    """`draw` is for whoever decides what happens next; the parts have generators of their own."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.seed = seed
        self.faults = faults
        self.draw = random.Random(seed)
        self.loop = SimulatedLoop()  # type: ignore[abstract]
        self.network = SimulatedNetwork(self.loop, self._new_seed(), faults.network)
        self.disks: dict[str, SimulatedDisk] = {}
        self.clocks: dict[str, MachineClock] = {}
        self.processes: list[Process] = []
        self.clock = self.machine_clock("world")

    def _new_seed(self) -> int:
        return self.draw.getrandbits(64)

    def machine_clock(self, machine: str) -> MachineClock:
        if machine not in self.clocks:
            self.clocks[machine] = MachineClock(self.loop)
        return self.clocks[machine]

    def disk(self, machine: str) -> SimulatedDisk:
        if machine not in self.disks:
            self.disks[machine] = SimulatedDisk(self._new_seed(), copy.copy(self.faults.disk))
        return self.disks[machine]

    def new_process(self, name: str, machine: str = "") -> tuple[Process, Runtime]:
        """A process that runs nothing yet; see `start`."""
        process = Process(name, machine)
        self.processes.append(process)
        runtime = Runtime(
            clock=self.machine_clock(process.machine),
            random=SimulatedRandom(self._new_seed()),
            network=self.network.endpoint(process),
            disk=DiskOfProcess(self.disk(process.machine), process),
            executor=SimulatedExecutor(self._new_seed()),
        )
        return process, runtime

    def start(self, process: Process, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.loop.spawn(process, main)

    # ---- what can happen to processes ----------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """SIGKILL: the system closes its connections and keeps what it wrote."""
        if not process.gone:
            process.kill()
            self.network.process_gone(process, silent=False)

    def lose_power(self, machine: str) -> None:
        """Every process of the machine ends; its peers hear nothing; what was not synced may be lost."""
        for process in self.processes:
            if process.machine == machine and not process.gone:
                process.kill()
                self.network.process_gone(process, silent=True)
        self.disk(machine).lose_power()

    def stop(self, process: Process) -> None:
        """SIGSTOP."""
        process.stopped = True

    def resume(self, process: Process) -> None:
        """SIGCONT."""
        if process.stopped and not process.gone:
            self.loop.resume(process)

    def close(self) -> None:
        """After the run: nothing of it runs again, not even clean-up."""
        for process in self.processes:
            process.forget()
        for disk in self.disks.values():
            disk.forget()
        self.loop.close()
