"""Harm that is aimed: at whoever leads a shard of the stream, or at a copy that is being made, at that very moment.

What is drawn blindly meets a leader with records that nobody else has only now and then; for finding out whether a rule
is needed these moments are what matters. None of it is in a drawn world: a test names it in `Faults.acts`.

    leader_alone          the leader reaches clients and the store, but no other node; leader_with_one: one other
    leaders_in_turn       the same, and once another leads, it or the third one is cut off, and the one before is back
    leader_usurped        it hears late from the store, and another is asked to lead
    leader_dies           its process is killed
    leader_loses_power    and perhaps one of the other copies at the same moment
    relay                 the leader and one follower, then one of these two and the third: what the first two knew,
    relay_power           .. the one that is in both must know, though it loses power in between, with a slow disk,
    relay_wipe            .. or not count, when its disk is replaced, relay_rot: is damaged in between
    voter_loses_power     while its promise is on its way to the disk; then it hears the old leader only
    catch_up_cut_off      a follower loses power while another is away, and once it may vote again the leader is cut off
    change_cut_off        a copy moves; the leader and the new copy are cut off from the others and the store meanwhile
    change_half_done      a copy moves; when the change is in the store, the nodes that know more are cut off
    split_cut_off         a shard is split, and its leader is cut off
    coordinator_alone     the leader of the applications' log is cut off; coordinator_dies: is killed
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from streamkit.broker.copy import Copy
from streamkit.metadata.catalog import APPLICATIONS_STREAM
from streamkit.protocol import messages as m
from streamkit.simulator.cluster import Cluster, Place
from streamkit.simulator.recording import STREAM
from streamkit.simulator.workload import Workload
from streamkit.simulator.world import World

_SECONDS = (0.3, 0.8, 2.0)
_SLOW_SYNC_SECONDS = 0.2
_POLL_SECONDS = 0.002
_PROMISE_POLL_SECONDS = 0.0001
_RESTART_SECONDS = 10.0                # a registration of the process before has to end first

Led = tuple[Place, Copy]


@dataclass(slots=True)
class Aim:
    """after, run, ask, lose_power: the nemesis's own means. victim: whose disk may be damaged in this run."""

    world: World
    cluster: Cluster
    workload: Workload
    draw: random.Random
    victim: Place
    after: Callable[[float, Callable[[], None]], None]
    run: Callable[[Awaitable[None]], None]
    ask: Callable[[m.Message], None]
    lose_power: Callable[[list[Place]], None]
    cut: set[tuple[str, str]] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def acts(self) -> dict[str, Callable[[], None]]:
        return {
            "leader_alone": self.leader_alone,
            "leader_with_one": self.leader_with_one,
            "leaders_in_turn": lambda: self._begin(self._leaders_in_turn),
            "leader_dies": self.leader_dies,
            "leader_loses_power": self.leader_loses_power,
            "relay": lambda: self._begin(partial(self._relay, "")),
            "relay_power": lambda: self._begin(partial(self._relay, "power")),
            "relay_wipe": lambda: self._begin(partial(self._relay, "wipe")),
            "voter_loses_power": lambda: self._begin(self._voter_loses_power),
            "catch_up_cut_off": lambda: self._begin(self._catch_up_cut_off),
            "change_cut_off": lambda: self._begin(self._change_cut_off),
            "change_half_done": lambda: self._begin(self._change_half_done),
            "split_cut_off": self.split_cut_off,
            "leader_usurped": lambda: self._begin(self._leader_usurped),
            "relay_rot": lambda: self._begin(partial(self._relay, "rot")),
            "coordinator_alone": self.coordinator_alone,
            "coordinator_dies": lambda: self.leader_dies(APPLICATIONS_STREAM),
        }

    # ---- who and where ----------------------------------------------------------------------------------------------

    def _leader(self, stream: str = STREAM) -> Led | None:
        """Whoever leads a shard of the stream in its newest epoch, and the copy that does."""
        newest: dict[bytes, Led] = {}
        for place in self.cluster.places:
            for uuid, copy in self._copies(place).items():
                if copy.server is not None and copy.entry.stream == stream and (
                    uuid not in newest or newest[uuid][1].epoch < copy.epoch
                ):
                    newest[uuid] = place, copy
        return self.draw.choice(list(newest.values())) if newest else None

    def _copies(self, place: Place) -> dict[bytes, Copy]:
        node = place.serving
        return {} if node is None or node.cluster is None else node.cluster.copies.copies

    def _place(self, name: str) -> Place:
        return next(place for place in self.cluster.places if place.name == name)

    def _others(self, copy: Copy, leader: Place) -> list[str]:
        return [member.node for member in copy.replica_set.members if member.node != leader.name]

    def _part(self, *side: str) -> None:
        """Those nodes are cut off from all the other nodes; whatever was cut before is not any more. None: all heal."""
        names = [place.name for place in self.cluster.places]
        links = {(one, other) for one in names for other in names if (one in side) != (other in side)}
        network = self.world.network
        for link in sorted(links - self.cut):
            network.stall(*link, True)
        for link in sorted(self.cut - links):
            network.stall(*link, False)
        self.cut = links

    def _part_for_a_while(self, *side: str) -> None:
        self._part(*side)
        self.after(self._seconds(), self._part)

    def _seconds(self) -> float:
        return self.draw.choice(_SECONDS) * (0.5 + self.draw.random())

    async def _until(self, condition: Callable[[], object], seconds: float, poll: float = _POLL_SECONDS) -> bool:
        """Whether it came true in time."""
        end = self.world.loop.time() + seconds
        while not condition():
            if self.world.loop.time() > end:
                return False
            await asyncio.sleep(poll)
        return True

    def _begin(self, act: Callable[[], Awaitable[None]]) -> None:
        """One story at a time; another that begins meanwhile is not told."""
        async def whole() -> None:
            async with self.turn:
                await act()
            self._part()

        if not self.turn.locked():
            self.run(whole())

    # ---- leaders ----------------------------------------------------------------------------------------------------

    def leader_alone(self) -> None:
        if (found := self._leader()) is not None:
            self._part_for_a_while(found[0].name)

    def coordinator_alone(self) -> None:
        if (found := self._leader(APPLICATIONS_STREAM)) is not None:
            self._part_for_a_while(found[0].name)

    def leader_with_one(self) -> None:
        if (found := self._leader()) is not None and (others := self._others(found[1], found[0])):
            self._part_for_a_while(found[0].name, self.draw.choice(others))

    async def _leaders_in_turn(self) -> None:
        """Cut off: the leader; once another leads, that one or the one that neither led; and so on."""
        led: list[str] = []
        for _ in range(self.draw.choice((2, 3, 4))):
            if (found := self._leader()) is None or found[0].name in led[-1:]:
                break
            leader, copy = found
            idle = [name for name in self._others(copy, leader) if name not in led[-1:]]
            led.append(leader.name)
            self._part(self.draw.choice(idle) if len(led) > 1 and idle and self.draw.random() < 0.4 else leader.name)
            await self._until(lambda: self._is_established(led[-1]), 1.5)
            await asyncio.sleep(self.draw.choice((0.0, 0.02, 0.2)))
        self._part()

    def _is_established(self, but: str) -> bool:
        """Somebody else leads by now."""
        return (found := self._leader()) is not None and found[0].name != but and found[1].is_established

    async def _leader_usurped(self) -> None:
        """It hears nothing from the store, and another is to lead."""
        if (found := self._leader()) is None or (handle := found[0].handle) is None:
            return
        leader, copy = found
        handle.faults.delay_ms = (400.0, 400.0)
        self.ask(m.MoveShard(STREAM, self._ordinal(copy), leader=self.draw.choice(self._others(copy, leader))))
        await asyncio.sleep(0.8)
        handle.faults.delay_ms = (0.0, 0.0)

    def leader_dies(self, stream: str = STREAM) -> None:
        if (found := self._leader(stream)) is not None:
            self.world.kill(found[0].process)

    def leader_loses_power(self) -> None:
        if (found := self._leader()) is not None:
            leader, copy = found
            others = self._others(copy, leader)
            names = {leader.name, *self.draw.sample(others, min(len(others), self.draw.choice((0, 0, 1))))}
            self.lose_power([place for place in self.cluster.places if place.name in names])

    def split_cut_off(self) -> None:
        if (found := self._leader()) is not None:
            leader, copy = found
            self.ask(m.SplitShard(STREAM, self._ordinal(copy)))
            self.after(self.draw.random() * 0.05, lambda: self._part_for_a_while(leader.name))

    def _ordinal(self, copy: Copy) -> int:
        return next((shard.ordinal for shard in self.workload.shards if shard.uuid == copy.uuid), 0)

    # ---- one that is in two majorities ------------------------------------------------------------------------------

    async def _relay(self, harm: str) -> None:
        if (found := self._leader()) is None or len(others := self._others(found[1], found[0])) < 2:
            return
        leader, draw = found[0].name, self.draw
        third = draw.choice(others)
        damages = harm in ("wipe", "rot")
        if damages and third == self.victim.name:
            third = next(other for other in others if other != third)
        pair = [leader, *(other for other in others if other != third)][:2]
        bridge = self._place(self.victim.name if damages and self.victim.name in pair else draw.choice(pair))
        gone = next(name for name in pair if name != bridge.name)
        faults = self.world.disk(bridge.name).faults
        before = faults.sync_seconds
        if harm == "power":
            faults.sync_seconds = _SLOW_SYNC_SECONDS
        self._part(third)
        await asyncio.sleep(0.1 + 0.2 * draw.random())
        self._part(gone)
        if harm == "power":
            self.lose_power([bridge])
        elif damages and bridge is self.victim:
            self.world.kill(bridge.process)
            if harm == "wipe":
                self.world.disk(bridge.name).replace({})
            else:
                self._rot_much(bridge.name)
        faults.sync_seconds = before
        await asyncio.sleep(0.3)
        await self._until(lambda: bridge.serving, _RESTART_SECONDS)
        await asyncio.sleep(1.0 + self._seconds())

    def _rot_much(self, name: str) -> None:
        """Much of what was written does not read back, wherever it lies."""
        disk = self.world.disk(name)
        for path, size in disk.files().items():
            if size and ("journal" in path or path.endswith(".log")):
                for _ in range(60):
                    disk.rot(path, self.draw.randrange(size), 1 << self.draw.randrange(8))

    async def _voter_loses_power(self) -> None:
        if (found := self._leader()) is None:
            return
        leader = found[0]
        self._part(leader.name)
        if leader.handle is not None:
            leader.handle.faults.reachable = False         # it would hear who leads next
        promising: list[Place] = []

        def look() -> bool:
            promising[:] = [
                place for place in self.cluster.places if place is not leader and any(
                    copy.follower.promised > copy.log.promised_epoch and copy.entry.leader != place.name
                    for copy in self._copies(place).values()
                )
            ]  # fmt: skip
            return bool(promising)

        if await self._until(look, 1.5, _PROMISE_POLL_SECONDS):
            voter = promising[0]
            await asyncio.sleep(0.004 * self.draw.random())
            self.lose_power([voter])
            await asyncio.sleep(0.01)
            self._part(*(place.name for place in self.cluster.places if place not in (voter, leader)))
            await self._until(lambda: voter.serving, _RESTART_SECONDS)
            await asyncio.sleep(0.5 + self._seconds())
        if leader.handle is not None:
            leader.handle.faults.reachable = True

    async def _catch_up_cut_off(self) -> None:
        if (found := self._leader()) is None or not (others := self._others(found[1], found[0])):
            return
        leader, copy = found
        place = self._place(self.draw.choice(others))
        away = next((self._place(other).process for other in others if other != place.name), None)
        if away is not None:
            self.world.stop(away)
        await asyncio.sleep(0.2)
        self.lose_power([place])

        def votes() -> bool:
            again = self._copies(place).get(copy.uuid)
            return again is not None and again.follower.certain

        await self._until(votes, _RESTART_SECONDS)
        self._part(leader.name)
        if away is not None:
            self.world.resume(away)
        await asyncio.sleep(0.5 + self._seconds())

    # ---- changes of members -----------------------------------------------------------------------------------------

    def _begin_change(self) -> tuple[Place, Copy, str, str] | None:
        """(leader, its copy, who leaves, who comes)"""
        if (found := self._leader()) is None:
            return None
        leader, copy = found
        others = self._others(copy, leader)
        new = [place.name for place in self.cluster.places if place.name not in (leader.name, *others)]
        if not new or len(others) < 2:
            return None
        out, into = self.draw.choice(others), self.draw.choice(new)
        self.ask(m.MoveShard(STREAM, self._ordinal(copy), out=out, into=into))
        return leader, copy, out, into

    async def _change_cut_off(self) -> None:
        if (begun := self._begin_change()) is None:
            return
        leader, copy, _, into = begun

        def is_fed() -> bool:
            feed = copy.feed(into)
            return feed is not None and feed.matched is not None

        if await self._until(is_fed, 1.0) and leader.handle is not None:
            handle = leader.handle
            self._part(leader.name, into)
            handle.faults.reachable = False        # or it would make the learner a member, and wait for the others

            await asyncio.sleep(self._seconds())
            handle.faults.reachable = True

    async def _change_half_done(self) -> None:
        if (begun := self._begin_change()) is None:
            return
        leader, copy, out, into = begun
        left = next(name for name in self._others(copy, leader) if name != out)

        def may_vote() -> bool:
            new = self._copies(self._place(into)).get(copy.uuid)
            return new is not None and new.follower.certain

        if await self._until(may_vote, 1.0):
            self._part(left)
            if await self._until(lambda: into in copy.entry.nodes, 0.25):
                await asyncio.sleep(self.draw.choice((0.0, 0.005, 0.03)))
                self._part(leader.name, out)
                await asyncio.sleep(0.3 + self._seconds())
