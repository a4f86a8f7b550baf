"""Harm that needs several nodes: partitions, a failing store, power lost in many places, disks replaced, shards moved.

Damage at rest (flipped bits, lying syncs, misdirected writes, a wiped or restored disk) comes to one node only, the
`victim` of the run: of every range the others hold what they vouched for, which is all that any protocol can build on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from streamkit.errors import StreamkitError
from streamkit.protocol import messages as m
from streamkit.simulator.aimed import Aim
from streamkit.simulator.cluster import Cluster, Place
from streamkit.simulator.nemesis import Nemesis
from streamkit.simulator.recording import STREAM
from streamkit.simulator.workload import Workload
from streamkit.simulator.world import World

_ASK_SECONDS = 5.0
_ROT_SPARES = ("lock",)


class ClusterNemesis(Nemesis):
    """`victim` alone suffers damage at rest. power_losses: how many nodes lost power, for what `os` promises."""

    def __init__(self, world: World, cluster: Cluster, workload: Workload) -> None:
        super().__init__(world, cluster, workload)
        self.victim = self.draw.choice(cluster.places)
        self.victim.is_victim = True
        self._acts |= {
            "power_loss_two": self.power_loss_two,
            "power_loss_all": self.power_loss_all,
            "victim_loses_power": self.victim_loses_power,
            "slow_node": self.slow_node,
            "wipe_node": self.wipe_node,
            "restore_node": self.restore_node,
            "rot": self.rot,
            "lying_disk": self.lying_disk,
            "misdirected_write": self.misdirected_write,
            "stale_read": self.stale_read,
            "partition": self.partition,
            "isolate": self.isolate,
            "one_way": self.one_way,
            "ring": self.ring,
            "slow_network": self.slow_network,
            "cut_store": self.cut_store,
            "store_down": self.store_down,
            "store_loses_answers": self.store_loses_answers,
            "store_slow": self.store_slow,
            "store_stale": self.store_stale,
            "expire_sessions": self.expire_sessions,
            "compact_store": self.cluster.store.compact,
            "move_leader": self.move_leader,
            "move_copy": self.move_copy,
            "drain_node": self.drain_node,
            "split": self.split,
            "merge": self.merge,
            "upgrade": self.upgrade,
        }  # fmt: skip
        self._acts |= Aim(
            world, cluster, workload, self.draw, self.victim, self._after, self._run, self._ask, self._lose_power
        ).acts

    async def heal(self) -> None:
        await super().heal()
        for place in self.cluster.places:
            place.kept_down = False
            if place.handle is not None:
                faults = place.handle.faults
                faults.reachable = faults.answers = True
                faults.delay_ms, faults.lost_rate, faults.stale_ms = (0.0, 0.0), 0.0, 0
            disk = self.world.disk(place.name)
            disk.misdirected = disk.stale = 0
            if disk.lying:
                disk.lying = False             # what it claimed to have, it has, unless power was lost meanwhile
                disk.settle()

    # ---- power, processes, disks ------------------------------------------------------------------------------------

    def power_loss(self) -> None:
        self._lose_power([self.place()])

    def power_loss_two(self) -> None:
        self._lose_power(self.draw.sample(self.cluster.places, 2))

    def power_loss_all(self) -> None:
        self._lose_power(self.cluster.places)

    def victim_loses_power(self) -> None:
        self._lose_power([self.victim])

    def _lose_power(self, places: list[Place]) -> None:
        for place in places:
            if self.world.disk(place.name).astray and self.world.faults.small_journal:
                continue                       # a large write that never was looks the same: docs/decisions/0010
            self.world.lose_power(place.name)
            place.kept_down = True

            def back(place: Place = place) -> None:
                place.kept_down = False

            self._after(self._short(), back)

    def stop_node(self) -> None:
        process = self.place().process
        self.world.stop(process)
        seconds = self.draw.choice((0.5, 2.0, 8.0, 60.0 if self.draw.random() < 0.2 else 4.0))
        self._after(seconds, lambda: self.world.resume(process))

    def slow_node(self) -> None:
        """It runs a twentieth of the time."""
        process = self.place().process

        async def stutter() -> None:
            for _ in range(self.draw.choice((10, 40))):
                self.world.stop(process)
                await asyncio.sleep(0.05)
                self.world.resume(process)
                await asyncio.sleep(0.0025)

        self._run(stutter())

    def wipe_node(self) -> None:
        """Its disk is replaced by an empty one."""
        self.world.kill(self.victim.process)
        self.world.disk(self.victim.name).replace({})

    def restore_node(self) -> None:
        """A backup is taken, the node starts once more, and a while later it is given the backup.

        One that is older than the node's last start is noticed and refused; with a younger one nobody could tell that
        it forgot something, and what only it and one other copy held would hang on that other copy.
        """
        victim = self.victim
        picture, starts = self.world.disk(victim.name).picture(), victim.starts
        self.world.kill(victim.process)

        def restore() -> None:
            if victim.starts > starts and victim.serving is not None:
                self.cluster.note(f"restore {victim.name}")
                self.world.kill(victim.process)
                self.world.disk(victim.name).replace(picture)

        self._after(self._short(), restore)

    def rot(self) -> None:
        """A few bits flip while nobody looks, or under a node that runs."""
        if self.draw.random() < 0.7:
            self.world.kill(self.victim.process)
        disk = self.world.disk(self.victim.name)
        files = [(path, size) for path, size in disk.files().items() if size and not path.endswith(_ROT_SPARES)]
        for _ in range(self.draw.choice((1, 1, 3)) if files else 0):
            path, size = self.draw.choice(files)
            position = self.draw.randrange(size)
            self.cluster.note(f"rot {self.victim.name} {path} at {position}")
            disk.rot(path, position, 1 << self.draw.randrange(8))

    def lying_disk(self) -> None:
        self.world.disk(self.victim.name).lying = True

    def misdirected_write(self) -> None:
        self.world.disk(self.victim.name).misdirected += 1

    def stale_read(self) -> None:
        self.world.disk(self.victim.name).stale += self.draw.choice((1, 3))

    # ---- the network ------------------------------------------------------------------------------------------------

    def _cut(self, links: list[tuple[str, str]]) -> None:
        network = self.world.network
        for link in links:
            network.stall(*link, True)
        reset = self.draw.random() < 0.5

        def lift() -> None:
            for link in links:
                network.stall(*link, False)
            if reset:
                network.break_some(0.5)

        self._after(self._short(), lift)

    def _names(self) -> list[str]:
        return [place.name for place in self.cluster.places]

    def partition(self) -> None:
        names = self._names()
        self.draw.shuffle(names)
        cut = self.draw.randint(1, len(names) - 1)
        self._cut([
            link for left in names[:cut] for right in names[cut:] for link in ((left, right), (right, left))
        ])  # fmt: skip

    def isolate(self) -> None:
        """One node hears nobody: no node, no client, and perhaps no store."""
        place = self.place()
        others = [*self._names(), *self.workload.machines()]
        self._cut([
            link for other in others if other != place.name for link in ((place.name, other), (other, place.name))
        ])  # fmt: skip
        if place.handle is not None and self.draw.random() < 0.5:
            self._store_fault(place, reachable=False)

    def one_way(self) -> None:
        names = self.draw.sample(self._names(), 2)
        self._cut([(names[0], names[1])])

    def ring(self) -> None:
        """Each node reaches its two neighbours only; of three, one pair is cut."""
        names = self._names()
        count = len(names)
        far = [
            (names[i], names[j]) for i in range(count) for j in range(count)
            if i != j and (abs(i - j) not in (1, count - 1) or (count == 3 and {i, j} == {0, 2}))
        ]  # fmt: skip
        self._cut(far)

    def slow_network(self) -> None:
        faults = self.world.network.faults
        before = faults.slow, faults.slow_seconds
        faults.slow, faults.slow_seconds = 0.5, self.draw.choice((0.1, 1.0))

        def restore() -> None:
            faults.slow, faults.slow_seconds = before

        self._after(self._short(), restore)

    # ---- the coordination store -------------------------------------------------------------------------------------

    def _store_fault(self, place: Place, **wrong: Any) -> None:
        if place.handle is None:
            return
        faults = place.handle.faults
        before = {name: getattr(type(faults)(), name) for name in wrong}
        for name, value in wrong.items():
            setattr(faults, name, value)

        def restore() -> None:
            for name, value in before.items():
                setattr(faults, name, value)

        self._after(2 * self._short(), restore)

    def cut_store(self) -> None:
        self._store_fault(self.place(), **self.draw.choice(({"reachable": False}, {"answers": False})))

    def store_down(self) -> None:
        for place in self.cluster.places:
            self._store_fault(place, reachable=False)

    def store_loses_answers(self) -> None:
        for place in self.cluster.places:
            self._store_fault(place, lost_rate=self.draw.choice((0.1, 0.5)))

    def store_slow(self) -> None:
        for place in self.cluster.places:
            self._store_fault(place, delay_ms=self.draw.choice(((5.0, 50.0), (100.0, 2_500.0))))

    def store_stale(self) -> None:
        for place in self.cluster.places:
            self._store_fault(place, stale_ms=self.draw.choice((100, 3_000)))

    def expire_sessions(self) -> None:
        for place in self.cluster.places:
            if place.handle is not None and self.draw.random() < 0.6:
                place.handle.expire_sessions()

    # ---- what operators do ------------------------------------------------------------------------------------------

    def _ask(self, message: m.Message) -> None:
        """One try; what is refused is refused."""
        process, runtime = self.world.new_process("admin")
        client = self.workload.client("admin", runtime)

        async def main() -> None:
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    await client.call(message)
            except (StreamkitError, TimeoutError) as error:
                self.cluster.note(f"{type(message).__name__} refused: {error}")
            await client.close()

        self._later.append(self.world.start(process, main()))

    def _ordinal(self) -> int:
        return self.draw.randrange(self.world.faults.shards)

    def move_leader(self) -> None:
        self._ask(m.MoveShard(STREAM, self._ordinal(), leader=self.place().name))

    def move_copy(self) -> None:
        out, into = self.draw.sample(self._names(), 2)
        self._ask(m.MoveShard(STREAM, self._ordinal(), out=out, into=into))

    def drain_node(self) -> None:
        name = self.place().name
        self._ask(m.DrainNode(name))
        self._after(2 * self._short(), lambda: self._ask(m.DrainNode(name, undo=True)))

    def split(self) -> None:
        self._ask(m.SplitShard(STREAM, self._ordinal()))

    def merge(self) -> None:
        if self.world.faults.shards > 1:
            first = self.draw.randrange(self.world.faults.shards - 1)
            self._ask(m.MergeShards(STREAM, (first, first + 1)))

    def upgrade(self) -> None:
        """The next node in turn is restarted and speaks the newest protocol from then on."""
        for place in self.cluster.places:
            if place.protocol_max:
                place.protocol_max = 0
                self._run(place.stop_orderly())
                return
