"""Looks into the nodes of a cluster while they run, and once all is quiet: what no client can see.

    one leader an epoch      two nodes never serve the same shard in the same epoch
    nothing falls            the promise of a copy, and what it calls committed, as long as its process lives
    committed is final       a batch below any copy's high watermark is the same bytes on every copy, for good
    copies agree             at rest, the copies of a shard end at the same place and have the same digest
    majorities               what a leader calls committed, and the start of an epoch that settled a change of members,
                             lies on the disks of a majority of the members
    bounds                   puts that wait for copies that are away, and what is kept for those, stay bounded

It reads attributes of the shipped classes and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field

from streamkit._core.batch import Batch
from streamkit.broker.copy import Copy
from streamkit.errors import StreamkitError
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.simulator.cluster import Cluster, Place
from streamkit.simulator.oracle import History

_LOOK_SECONDS = 0.04
_READ_BYTES = 32 * 1024
_DIGEST_TRIES = 40


@dataclass(slots=True)
class _Seen:
    """Of one copy in one process. checked: committed batches before this were compared."""

    promised: int = 0
    high_watermark: int = 0
    checked: int = -1


@dataclass(slots=True)
class Watch:
    cluster: Cluster
    history: History
    leaders: dict[tuple[bytes, int], str] = field(default_factory=dict)
    committed: dict[bytes, dict[int, tuple[int, bytes]]] = field(default_factory=dict)
    seen: dict[tuple[str, bytes, bytes], _Seen] = field(default_factory=dict)
    promises: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    changing: dict[bytes, int] = field(default_factory=dict)       # the epoch in which members change
    vouched: dict[tuple[bytes, int], int] = field(default_factory=dict)
    compared: int = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            for place in self.cluster.places:
                self.look(place)
            self.look_at_majorities()
            await asyncio.sleep(_LOOK_SECONDS)

    def wrong(self, text: str) -> None:
        self.history.wrong.append(text)

    def copies(self, place: Place) -> dict[bytes, Copy]:
        node = place.serving
        if node is None or node.cluster is None:
            return {}
        return node.cluster.copies.copies

    def look(self, place: Place) -> None:
        for uuid, copy in self.copies(place).items():
            if not copy.closed:
                self._look_at(place, uuid, copy)

    def _look_at(self, place: Place, uuid: bytes, copy: Copy) -> None:
        incarnation = copy.log.incarnation
        key = (place.process.name, incarnation, uuid)
        seen = self.seen.get(key)
        if seen is None:
            seen = self.seen[key] = _Seen()
        promised, high_watermark = copy.follower.durable_promise, copy.high_watermark
        if promised < seen.promised:
            self.wrong(f"{_name(place, uuid)} promised {seen.promised}, and now {promised}")
        if high_watermark < seen.high_watermark:
            fell = f"fell from {seen.high_watermark} to {high_watermark}"
            self.wrong(f"the high watermark of {_name(place, uuid)} {fell}")
        if not self.cluster.world.disk(place.name).damaged:
            before = self.promises.get((incarnation, uuid), 0)
            if promised < before:
                self.wrong(f"{_name(place, uuid)} had promised {before}, and after a restart {promised}")
            elif promised > before:
                self.promises[incarnation, uuid] = promised
        seen.promised, seen.high_watermark = promised, high_watermark
        if copy.server is not None:
            owner = self.leaders.setdefault((uuid, copy.epoch), place.name)
            if owner != place.name:
                self.wrong(f"epoch {copy.epoch} of {uuid.hex()[:8]} is led by {owner} and by {place.name}")
        if high_watermark > seen.checked:
            self._compare(place, uuid, copy, seen, high_watermark)

    def _compare(self, place: Place, uuid: bytes, copy: Copy, seen: _Seen, high_watermark: int) -> None:
        log = copy.log
        at = max(seen.checked, log.log_start)
        while at < high_watermark:
            try:
                batches = log.read(at, high_watermark, _READ_BYTES)
            except (StreamkitError, OSError):
                return                                     # damaged; what of it is served is judged where it is read
            if not batches:
                break                                      # out of memory: it is read once all is quiet
            at = self.note(place.name, uuid, batches, high_watermark)
        seen.checked = max(high_watermark, seen.checked)

    def note(self, node: str, uuid: bytes, batches: list[bytes | memoryview], end: int) -> int:
        """Committed batches of one copy against those of all others; where they end."""
        known = self.committed.setdefault(uuid, {})
        at = 0
        for raw in batches:
            header = Batch(raw).read_header()
            at = header.end_sequence
            if at > end:
                break
            found = (at, hashlib.blake2b(raw, digest_size=8).digest())
            before = known.setdefault(header.base_sequence, found)
            self.compared += 1
            if before != found:
                self.wrong(f"{uuid.hex()[:8]} at {header.base_sequence}: the committed batch on {node} is another")
        return at

    # ---- majorities -------------------------------------------------------------------------------------------------

    def look_at_majorities(self) -> None:
        """Copies whose node is away hold what they are to hold, and so do those that lie on a disk which was damaged;
        what is only in memory may go with the power."""
        if self.cluster.world.faults.durability != "fsync":
            return
        found = {
            (uuid, copy.log.incarnation): copy for place in self.cluster.places
            if not self.cluster.world.disk(place.name).damaged for uuid, copy in self.copies(place).items()
        }  # fmt: skip
        for (uuid, _), copy in found.items():
            entry = copy.entry
            if entry.previous:
                self.changing[uuid] = entry.epoch
            elif self.changing.get(uuid) == entry.epoch:
                del self.changing[uuid]
                self._check_majority(found, uuid, entry, entry.epoch, 0)
            high_watermark = copy.high_watermark
            leads = copy.server is not None and entry.epoch == copy.epoch and high_watermark > copy.epoch_start
            if leads and self.vouched.get((uuid, copy.epoch), 0) < high_watermark:
                self.vouched[uuid, copy.epoch] = high_watermark
                self._check_majority(found, uuid, entry, copy.log.epoch_at(high_watermark - 1), high_watermark)

    def _check_majority(
        self, found: dict[tuple[bytes, bytes], Copy], uuid: bytes, entry: ReplicaSetEntry, epoch: int, end: int
    ) -> None:
        """A majority has on disk what ends at `end` and is of that epoch; 0: the epoch's start, wherever it is."""
        members = entry.replica_set.members
        lacking = [
            member.node for member in members
            if (copy := found.get((uuid, member.incarnation))) is not None and not _holds(copy, epoch, end)
        ]  # fmt: skip
        if 2 * (len(members) - len(lacking)) <= len(members):
            what = f"committed {uuid.hex()[:8]} up to {end}" if end else f"settled the members of {uuid.hex()[:8]}"
            self.wrong(f"{entry.leader} {what} in epoch {entry.epoch}, and no majority holds it: not {lacking}")

    # ---- once all is quiet ------------------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Every shard is led, and its copies have what the leader has. Waits for as long as it takes."""
        while self.unsettled():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)

    def unsettled(self) -> str:
        """What is still to come; "" when nothing is."""
        entries = self._entries()
        if entries is None:
            return "no node serves"
        for uuid, entry in entries.items():
            found = {place.name: self.copies(place).get(uuid) for place in self.cluster.places}
            leader = found.get(entry.leader)
            if leader is None or not leader.is_established:
                return f"{uuid.hex()[:8]} of {entry.stream} has no leader: {entry.leader} in epoch {entry.epoch}"
            for member in entry.replica_set.members:
                copy = found.get(member.node)
                if copy is None or copy.log.incarnation != member.incarnation:
                    return f"{uuid.hex()[:8]} of {entry.stream} has no copy on {member.node}"
                if copy.log.log_end != leader.log.log_end or not copy.log.certain:
                    return (
                        f"{member.node} holds {uuid.hex()[:8]} of {entry.stream} up to {copy.log.log_end}, "
                        f"the leader up to {leader.log.log_end}; certain: {copy.log.certain}"
                    )
                if copy.high_watermark != leader.high_watermark:
                    return f"{member.node} knows {uuid.hex()[:8]} up to {copy.high_watermark} only"
        return ""

    def _entries(self) -> dict[bytes, ReplicaSetEntry] | None:
        for place in self.cluster.places:
            if place.serving is not None and place.serving.cluster is not None:
                return dict(place.serving.cluster.copies.replica_sets.entries)
        return None

    async def compare_copies(self) -> None:
        """At rest: the copies of each shard have one digest from where all of them begin."""
        for uuid, entry in (self._entries() or {}).items():
            copies = [
                (place.name, copy) for place in self.cluster.places
                if (copy := self.copies(place).get(uuid)) is not None
                and any(member.incarnation == copy.log.incarnation for member in entry.replica_set.members)
            ]  # fmt: skip
            if not copies:
                continue
            await self._compare_copies(uuid, copies)

    async def _compare_copies(self, uuid: bytes, copies: list[tuple[str, Copy]]) -> None:
        digests: dict[tuple[int, int, int], str] = {}
        start = end = 0
        for _ in range(_DIGEST_TRIES):
            copies = [(name, copy) for name, copy in copies if not copy.closed]    # moved away, or restarted, meanwhile
            if not copies:
                return
            end = min(copy.log.log_end for _, copy in copies)
            start = max(copy.log.log_start for _, copy in copies)
            digests.clear()
            for name, copy in copies:
                try:
                    digests.setdefault(await copy.log.digest(start, end), name)
                except (StreamkitError, OSError) as error:
                    digests.setdefault((0, 0, 0), f"{name}: {error}")
            if len(digests) == 1 and (0, 0, 0) not in digests:
                return
            for name, copy in copies:
                if self.cluster.world.disk(name).damaged:
                    with contextlib.suppress(OSError):
                        await copy.log.verify()        # what was not read yet, is; it is repaired then
            await asyncio.sleep(0.5)
        if "lying_disk" not in self.cluster.world.faults.acts:
            self.wrong(f"the copies of {uuid.hex()[:8]} differ between {start} and {end}: {digests}")

    def stalled(self) -> bool:
        """Whether a shard has lost so many votes that only an operator may go on."""
        for uuid, entry in (self._entries() or {}).items():
            certain = {
                copy.log.incarnation for place in self.cluster.places
                if (copy := self.copies(place).get(uuid)) is not None and copy.log.certain
            }
            for group in (entry.replica_set.members, entry.replica_set.previous):
                if group and sum(member.incarnation in certain for member in group) <= len(group) // 2:
                    return True
        return False


def _name(place: Place, uuid: bytes) -> str:
    return f"{place.name}'s copy of {uuid.hex()[:8]}"


def _holds(copy: Copy, epoch: int, end: int) -> bool:
    log = copy.log
    if end:
        return log.durable_end >= end and log.epoch_at(end - 1) == epoch
    return any(found == epoch and start < log.durable_end for found, start in log.epochs)
