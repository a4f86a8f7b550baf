"""Who should stand, and when. A matter of liveness alone: whoever stands wrongly costs a moment, never a record.

    the store names us as leader, and we do not lead    ▸ stand at once (we were restarted)
    the leader's node is back with another disk         ▸ the first live member after it stands
    nobody led yet                                      ▸ the first member stands, once the copies are made
    the leader is gone                                  ▸ the first live member after it stands, others a little later
    the store wants us to lead                          ▸ stand once our log is close to the leader's

A leader is gone when its node refuses connections, or was silent for suspect_ms, and no other member hears it: a cut
between two nodes alone moves nothing, nor does a node that reaches no majority. Nothing here runs per shard while all
is well: shards are looked at by leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from streamkit.broker.copies import Copies
from streamkit.broker.copy import Copy
from streamkit.errors import StreamkitError
from streamkit.metadata.members import is_on_disk
from streamkit.protocol.peers import Hear, Heard
from streamkit.replication.replica_set import Member

logger = logging.getLogger("streamkit.broker")

_TURN_SECONDS = 0.15               # how much later the next member in line stands
_AGAIN_SECONDS = 0.5               # after an attempt that led nowhere
_BRISK_SECONDS = 0.02              # between looks while something is unsettled
_CALM_SECONDS = 0.5
_STANDING_MAX = 250                 # elections of this node at a time
_HEAR_TIMEOUT_MS = 500
_MAKING_SECONDS = 2.0              # how long the first leader waits for copies that are still being made
_CLOSE_RECORDS = 10_000            # a target stands when its log is that close


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionConfig:
    """suspect_ms: a node that was silent that long may be gone."""

    suspect_ms: int = 2_000


class Elections:
    """Run with `run()`; `wake()` whenever something may have changed. won: elections since the start."""

    def __init__(self, copies: Copies, config: ElectionConfig | None = None) -> None:
        self._copies = copies
        self._config = config or ElectionConfig()
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._unled: dict[bytes, Copy] = {}        # those that this node should lead, or somebody should
        self._standing: dict[bytes, asyncio.Task[None]] = {}
        self._disks: dict[str, str] = {}           # node → its disk, when its shards were looked at last
        self._gone: dict[str, float] = {}          # node → since when others agree that it is gone
        self._began_s = self._loop.time()
        self.won = 0

    def wake(self) -> None:
        self._woken.set()

    def entry_changed(self, copy: Copy) -> None:
        """The store said something of it, or it ceased to lead."""
        entry = copy.entry
        ours = entry.leader == self._copies.node and copy.server is None
        wanted = entry.target_leader == self._copies.node and copy.server is None
        if copy.is_member and (ours or wanted or not entry.leader or self._is_lost(copy)):
            if copy.uuid not in self._unled:
                copy.next_try_s = self._loop.time() + self._turn(copy)
                self._unled[copy.uuid] = copy
            self.wake()
        else:
            self._unled.pop(copy.uuid, None)

    async def run(self) -> None:
        while True:
            busy = await self._look()
            self._woken.clear()
            try:
                async with asyncio.timeout(_BRISK_SECONDS if busy else _CALM_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _look(self) -> bool:
        """One look at everything; True when something is unsettled."""
        busy = False
        now_s = self._loop.time()
        for copy in list(self._unled.values()):
            if copy.server is not None or copy.closed:
                self._unled.pop(copy.uuid, None)
            else:
                busy = True
                if now_s >= copy.next_try_s and self._is_wanted(copy):
                    self._stand(copy)
        for node in list(self._copies.by_leader):
            self._look_at_disk(node)
            if node in ("", self._copies.node) or not self._copies.by_leader[node]:
                self._gone.pop(node, None)
                continue
            busy |= not self._copies.peers.connected(node)         # a refusal follows within a round trip
            if not self._is_suspect(node):
                self._gone.pop(node, None)
                continue
            busy = True
            if await self._is_gone(node):
                self._stand_for(node)
        return busy

    def _look_at_disk(self, node: str) -> None:
        disk = self._copies.disks.get(node, "")
        if self._disks.get(node, "") != disk:
            self._disks[node] = disk
            for copy in list(self._copies.by_leader[node].values()):
                self.entry_changed(copy)

    def _is_lost(self, copy: Copy) -> bool:
        """Whether the leader's node lives on with another disk: then nobody leads."""
        leader, disk = copy.replica_set.named(copy.entry.leader), self._copies.disks.get(copy.entry.leader, "")
        return bool(disk) and leader is not None and not is_on_disk(leader.incarnation, disk)

    # -- is it gone? ---------------------------------------------------------------------------------------

    def _is_suspect(self, node: str) -> bool:
        peers = self._copies.peers
        if peers.connected(node):
            heard_ms = peers.heard_ms(node)
            return heard_ms is not None and heard_ms > self._config.suspect_ms
        if peers.refused(node):
            return True
        heard_ms = peers.heard_ms(node)
        if heard_ms is None:
            return self._loop.time() - self._began_s > self._config.suspect_ms / 1000
        return heard_ms > self._config.suspect_ms

    async def _is_gone(self, node: str) -> bool:
        """Whether none of the others hears it, either."""
        others = [other for other in sorted(self._copies.addresses) if other not in (node, self._copies.node)]
        asked = [self._ask(other, node) for other in others if self._copies.peers.connected(other)]
        ages = await asyncio.gather(*asked)
        heard = any(0 <= age_ms < self._config.suspect_ms for age_ms in ages)
        if heard:
            self._gone.pop(node, None)
            return False
        self._gone.setdefault(node, self._loop.time())
        return True

    async def _ask(self, other: str, node: str) -> int:
        try:
            answer = await self._copies.peers.ask(other, Hear(node), _HEAR_TIMEOUT_MS)
        except StreamkitError:
            return -1
        return answer.age_ms if isinstance(answer, Heard) else -1

    # -- standing ------------------------------------------------------------------------------------------

    def _stand_for(self, node: str) -> None:
        since_s = self._gone[node]
        now_s = self._loop.time()
        for copy in list(self._copies.by_leader.get(node, {}).values()):
            if not copy.is_member or copy.closed or now_s < copy.next_try_s:
                continue
            if now_s - since_s >= self._turn(copy, without=node) and self._reaches_majority(copy):
                self._stand(copy)

    def _reaches_majority(self, copy: Copy) -> bool:
        """Whether enough copies could be sealed. A node that is cut off itself would end a leader and replace none."""
        peers, us = self._copies.peers, self._copies.node
        replicas = copy.replica_set
        return replicas.is_sealed_by([
            member for member in replicas.voters if member.node == us or peers.connected(member.node)
        ])

    def _turn(self, copy: Copy, without: str = "") -> float:
        """Seconds that this node leaves to those in line before it."""
        peers = self._copies.peers
        nodes = copy.entry.nodes
        first = nodes.index(without) + 1 if without in nodes else 0
        line = [*nodes[first:], *nodes[:first]]
        place = 0
        for node in line:
            if node == self._copies.node:
                break
            if node != without and peers.connected(node):
                place += 1
        return place * _TURN_SECONDS * (1 + self._copies.random.uniform())

    def _is_wanted(self, copy: Copy) -> bool:
        """Whether this node is the one that should stand now."""
        entry = copy.entry
        if entry.leader == self._copies.node or not entry.leader or self._is_lost(copy):
            return copy.follower.promised <= entry.epoch or self._loop.time() > copy.next_try_s + _AGAIN_SECONDS
        # Led by another, who goes on meanwhile: the nearer our log, the shorter the moment without a leader.
        return copy.follower.certain and copy.leader_end - copy.follower.matched <= _CLOSE_RECORDS

    def _stand(self, copy: Copy) -> None:
        if copy.uuid in self._standing or copy.is_standing or len(self._standing) >= _STANDING_MAX:
            return
        if self._copies.find(copy) is None:
            return                                     # its stream is being made
        self._standing[copy.uuid] = task = self._copies.run(self._run_election(copy))
        task.add_done_callback(lambda _: self._stood(copy))

    def _stood(self, copy: Copy) -> None:
        self._standing.pop(copy.uuid, None)
        copy.next_try_s = self._loop.time() + _AGAIN_SECONDS * (0.5 + self._copies.random.uniform())
        self.entry_changed(copy)
        self.wake()

    async def _run_election(self, copy: Copy) -> None:
        epoch = copy.entry.epoch
        unmade = await self._wait_for_copies(copy) if epoch == 0 else ()
        if unmade is None:
            return
        if copy.closed or copy.server is not None or copy.entry.epoch != epoch:
            return                                     # somebody else was faster
        if await copy.stand(unmade):
            self.won += 1
            logger.info("election.won", extra={"facts": {"shard": copy.uuid.hex(), "epoch": copy.entry.epoch}})

    async def _wait_for_copies(self, copy: Copy) -> Sequence[Member] | None:
        """The first leader comes when all copies are made, or all but a few that are late: those. None: too few are."""
        deadline = self._loop.time() + _MAKING_SECONDS
        waiting = [member for member in copy.replica_set.members if member.node != self._copies.node]
        while waiting and self._loop.time() < deadline and copy.entry.epoch == 0 and not copy.closed:
            found = await asyncio.gather(*(self._copies.voter(member, copy.uuid) for member in waiting))
            waiting = [member for member, made in zip(waiting, found, strict=True) if made is None]
            if waiting:
                await asyncio.sleep(_BRISK_SECONDS)
        replicas = copy.replica_set
        enough = replicas.is_sealed_by([member for member in replicas.voters if member not in waiting])
        return waiting if enough else None
