"""The controller: one live node looks after the whole cluster, and writes what it wants into the store.

    drained, removed or long dead nodes     ▸ their copies go elsewhere, where there is an elsewhere
    nodes added                             ▸ copies spread to them
    leaders unevenly spread                 ▸ some are asked to hand over, outside a dead band, a few at a time
    streams left CREATING or DELETING, claims left behind by a node that died     ▸ finished

It writes targets and nothing else: the leaders of the shards carry them out. Two controllers at once, which a lost
registration makes possible, do no harm: every target is a compare-and-swap over the entry that was looked at. It thinks
only when something has changed or a time is up, so an idle cluster costs it nothing.
Called by the node. Read `Controller.step`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from streamkit.errors import NotFound, StoreUnavailable, StreamBusy
from streamkit.metadata.cluster_catalog import CLAIMS, ClusterCatalog, remove_claim
from streamkit.metadata.members import ACTIVE, Members
from streamkit.metadata.placement import Move, Place, loads, plan_leaders, plan_members, plan_spread
from streamkit.metadata.replica_sets import ReplicaSetEntry, ReplicaSets
from streamkit.metadata.store import Registration, Store
from streamkit.metadata.view import View
from streamkit.model.stream import StreamStatus
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.tasks import Tasks

KEY = "controller"
_log = logging.getLogger("streamkit.metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """dead_after_ms: a node that was away for so long is replaced. unfinished_after_ms: a stream that was CREATING or
    DELETING for so long is finished by the controller. moves_max: shards whose members change at once.
    leaders_ms: how often leaders are evened out, leader_moves_max at a time."""

    tick_ms: int = 1_000
    ttl_ms: int = 5_000
    dead_after_ms: int = 300_000
    unfinished_after_ms: int = 30_000
    moves_max: int = 8
    leaders_ms: int = 5_000
    leader_moves_max: int = 16


class _Since:
    """Since when each of some names is as it is; by the monotonic clock of this process."""

    def __init__(self) -> None:
        self.began_ms: dict[str, int] = {}

    def note(self, names: Collection[str], now_ms: int) -> None:
        self.began_ms = {name: self.began_ms.get(name, now_ms) for name in names}

    def for_at_least(self, ms: int, now_ms: int) -> list[str]:
        return [name for name, began_ms in self.began_ms.items() if now_ms - began_ms >= ms]

    def is_due(self, ms: int, now_ms: int, besides: Collection[str] = ()) -> bool:
        return any(now_ms - began_ms >= ms for name, began_ms in self.began_ms.items() if name not in besides)


class Controller:
    """`await open()`, `await close()`. acting: the node that acts as controller now; "" when there is none."""

    def __init__(
        self, store: Store, runtime: Runtime, *, node: str, members: Members, replica_sets: ReplicaSets,
        catalog: ClusterCatalog, replicas: int, config: ControllerConfig | None = None,
    ) -> None:
        """replicas: how many copies each shard is to have where there are nodes for them."""
        self.acting = ""
        self._store, self._clock, self._node = store, runtime.clock, node
        self._members, self._sets, self._catalog = members, replica_sets, catalog
        self._replicas = replicas
        self._config = config or ControllerConfig()
        self._registration: Registration | None = None
        self._view = View(store, KEY, self._took_over)
        self._away, self._unfinished, self._claims = _Since(), _Since(), _Since()
        self._dead: frozenset[str] = frozenset()
        self._changed = True                       # something is to be thought about
        self._leaders_due_ms = 0
        self._tasks = Tasks(f"controller {node}")

    async def open(self) -> None:
        """Raises StoreUnavailable."""
        await self._view.open()
        self._members.on_change.append(self._note)
        self._members.on_member.append(self._note)
        self._sets.on_change.append(self._note)
        self._catalog.on_change.append(self._note)
        self._tasks.start(self._run(), "run")

    async def close(self) -> None:
        await self._tasks.close()
        await self._view.close()
        for calls in (self._members.on_change, self._members.on_member, self._sets.on_change, self._catalog.on_change):
            _remove(calls, self._note)
        if self._registration is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._registration.release()

    async def _run(self) -> None:
        renew_due_ms = 0
        while True:
            with contextlib.suppress(StoreUnavailable):        # the store's trouble is reported by `members`
                now_ms = self._clock.monotonic_ms()
                if now_ms >= renew_due_ms:
                    await self._stand()
                    renew_due_ms = now_ms + self._config.ttl_ms // 3
                if self._registration is not None and self._is_due(now_ms):
                    await self.step()
            await asyncio.sleep(self._config.tick_ms / 1000)

    async def _stand(self) -> None:
        """Renew, or become the controller when nobody is."""
        if self._registration is not None:
            if await self._registration.renew():
                return
            self._registration = None
        if not self.acting or self.acting == self._node:
            self._registration = await self._store.register(KEY, self._node.encode(), self._config.ttl_ms)
            if self._registration is None:
                return
            self._changed = True
            self._leaders_due_ms = self._clock.monotonic_ms() + self._config.leaders_ms
            _log.info("controller.acting", extra={"facts": {"node": self._node}})

    def _is_due(self, now_ms: int) -> bool:
        unfinished_ms = self._config.unfinished_after_ms
        return (
            self._changed or self._away.is_due(self._config.dead_after_ms, now_ms, self._dead)
            or self._unfinished.is_due(unfinished_ms, now_ms) or self._claims.is_due(unfinished_ms, now_ms)
        )

    async def step(self) -> int:
        """Look at everything once; how many targets were written. Raises StoreUnavailable."""
        self._changed = False
        now_ms = self._clock.monotonic_ms()
        await self._finish_streams(now_ms)
        leaving, places = self._judge_nodes(now_ms)
        entries = self._sets.entries
        moves = plan_members(entries, places, leaving=leaving, replicas=self._replicas)
        under_way = sum(bool(entry.previous or entry.target_members) for entry in entries.values())
        room = max(0, self._config.moves_max - under_way)
        if len(moves) > room:
            # Handing over the lead costs nothing and is not held back.
            moves = [*moves[:room], *(Move(move.uuid, (), move.leader) for move in moves[room:] if move.leader)]
        if not moves and room:
            moves = plan_spread(entries, places, moves_max=room)
        planned = {move.uuid for move in moves}
        moves += [move for move in self._withdrawn(leaving) if move.uuid not in planned]
        if not moves and under_way == 0:
            moves = self._even_leaders(places, now_ms)
        written = 0
        for move in moves:
            written += await self._write(move)
        return written

    def _judge_nodes(self, now_ms: int) -> tuple[set[str], list[Place]]:
        """(nodes whose copies are to go, nodes that may take copies)."""
        members, nodes = self._members.members, self._members.nodes
        self._away.note([name for name in members if name not in nodes], now_ms)
        self._dead = frozenset(self._away.for_at_least(self._config.dead_after_ms, now_ms))
        known = {name for entry in self._sets.entries.values() for name in (*entry.nodes, *entry.target_members)}
        leaving = {name for name, member in members.items() if member.state != ACTIVE} | (known - members.keys())
        leaving |= self._dead
        copies, leads = loads(self._sets.entries)
        places = [
            Place(node=name, zone=member.zone, live=name in nodes, copies=copies[name], leads=leads[name])
            for name, member in sorted(members.items()) if name not in leaving
        ]
        return leaving, places

    def _withdrawn(self, leaving: Collection[str]) -> list[Move]:
        """Leads that were asked of a node that is gone or leaves: nobody is asked any more."""
        nodes = self._members.nodes
        return [
            Move(uuid, entry.target_members, "") for uuid, entry in sorted(self._sets.entries.items())
            if entry.target_leader not in ("", entry.leader)
            and (entry.target_leader in leaving or entry.target_leader not in nodes)
        ]

    def _even_leaders(self, places: Sequence[Place], now_ms: int) -> list[Move]:
        if now_ms < self._leaders_due_ms:
            self._changed = True                           # not forgotten, only later
            return []
        moves = plan_leaders(self._sets.entries, places, moves_max=self._config.leader_moves_max)
        if moves:
            self._leaders_due_ms = now_ms + self._config.leaders_ms
        return moves

    async def _write(self, move: Move) -> int:
        entry = self._sets.entries.get(move.uuid)
        if entry is None or entry.previous:
            return 0
        wanted = entry.with_targets(leader=move.leader, members=move.members or entry.target_members)
        if wanted == entry:
            return 0
        written = await self._sets.swap(move.uuid, entry.revision, wanted)
        if written is not None:
            _log.info("shard.target", extra={"facts": _facts(move, entry)})
        return int(written is not None)

    # -- what others have left undone ------------------------------------------------------------------------

    async def _finish_streams(self, now_ms: int) -> None:
        streams = self._catalog.streams
        self._unfinished.note([n for n, stream in streams.items() if stream.status is not StreamStatus.ACTIVE], now_ms)
        for name in self._unfinished.for_at_least(self._config.unfinished_after_ms, now_ms):
            status = streams[name].status if name in streams else StreamStatus.ACTIVE
            if status is StreamStatus.ACTIVE:
                continue                                           # somebody was at it after all
            with contextlib.suppress(StreamBusy, NotFound):        # or is
                if status is StreamStatus.CREATING:
                    await self._catalog.set_status(name, StreamStatus.ACTIVE)
                else:
                    await self._catalog.forget(name)
                _log.warning("stream.finished_for_another", extra={"facts": {"stream": name}})
            self._unfinished.began_ms[name] = now_ms
        claims = [entry.key.removeprefix(CLAIMS) for entry in await self._store.list(CLAIMS)]
        self._claims.note(claims, now_ms)
        for name in self._claims.for_at_least(self._config.unfinished_after_ms, now_ms):
            try:
                await remove_claim(self._store, name)
                _log.warning("stream.claim_removed", extra={"facts": {"stream": name}})
            except StreamBusy:
                continue
            except msgspec.MsgspecError as error:          # left alone, and the rest of the cluster looked after
                facts = {"key": CLAIMS + name, "error": str(error)}
                _log.error("metadata.unreadable", extra={"facts": facts})

    # -- news ------------------------------------------------------------------------------------------------

    def _note(self, name: object, entry: object) -> None:
        self._changed = True

    def _took_over(self, key: str, value: bytes | None, revision: int) -> None:
        self.acting = "" if value is None else value.decode()


def _facts(move: Move, entry: ReplicaSetEntry) -> dict[str, str]:
    return {
        "shard": move.uuid.hex(), "stream": entry.stream, "members": " ".join(move.members or entry.nodes),
        "leader": move.leader,
    }


def _remove(calls: list[Callable[..., None]], call: Callable[..., None]) -> None:
    if call in calls:
        calls.remove(call)
