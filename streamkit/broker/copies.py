"""All copies of shards on this node, in a cluster: what other nodes and the store say goes to the copy concerned.

    store: an entry names us        ▸ make the log, follow
    store: an entry forgets us      ▸ close the copy; its log goes when the entry is there and does not name us
    node:  sections, answers, seals ▸ the copy
    disk:  logs got further         ▸ answers to leaders, acknowledgements to producers

What many copies want at one moment (a promise on disk, a seal from the same node) is asked for once. Made by the
node; `elections` decides who should stand, `reconfigure` carries out what the controller wants.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from streamkit.broker.copy import Copy
from streamkit.broker.counters import Counters
from streamkit.broker.fetch import next_sequence
from streamkit.broker.shard_server import ShardServer
from streamkit.errors import DiskFull, InvalidRequest, StoreUnavailable, StreamkitError
from streamkit.metadata.members import is_on_disk
from streamkit.metadata.replica_sets import ReplicaSetEntry, ReplicaSets
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability, StreamDescription
from streamkit.protocol.frames import Fetched, Section
from streamkit.protocol.messages import CopiesDescribed, DescribeCopies
from streamkit.protocol.peers import (
    AskLeader,
    Digest,
    DigestRange,
    Hear,
    Heard,
    LeaderSays,
    PeerAnswer,
    PeerRequest,
    Seal,
    Sealed,
    SealedShard,
)
from streamkit.replication.effects import Verdict
from streamkit.replication.replica_set import Member
from streamkit.runtime.interfaces import Clock, Random
from streamkit.storage import LogDirectory, NewShard, ShardLog

if TYPE_CHECKING:
    from streamkit.broker.peers import Peers

logger = logging.getLogger("streamkit.broker")

_SEAL_TIMEOUT_MS = 2_000
_SEAL_SECONDS = 1.0                # of them for the other node; what is not sealed by then is asked for again
_TELL_AGAIN_SECONDS = 0.1          # after somebody else's change to an entry, or none for the store is down
_MAKE_AGAIN_SECONDS = 0.5          # after a full disk refused to make copies, or took no promise
_NOBODY = bytes(16)


class Catalogue(Protocol):
    """What copies ask of the streams."""

    def place(self, uuid: bytes, stream: str) -> tuple[StreamDescription, Shard] | None:
        """The stream and the shard; None when the catalog does not know them, or not yet."""

    def serve(self, server: ShardServer) -> None:
        """This node leads the shard from now on."""

    def withdraw(self, server: ShardServer) -> None:
        """It does not any more."""


class Copies:
    """copies: by shard. by_leader: the same by the node that leads them as the store says, for elections.

    addresses: live node → where clients reach it. on_entry: called when the store said something new of a copy, or it
    began or ceased to lead. on_links: called when a link to a node came or went. on_asked: another node asks
    what this one leads. mend: fills the damaged ranges of a copy from others, as far as they can be reached.
    """

    def __init__(
        self, *, node: str, directory: LogDirectory, replica_sets: ReplicaSets, catalogue: Catalogue,
        counters: Counters, clock: Clock, random: Random,
    ) -> None:  # fmt: skip
        self.node = node
        self.directory = directory
        self.disk = directory.disk_id.hex()
        self.replica_sets = replica_sets
        self.counters = counters
        self.clock = clock
        self.random = random
        self.copies: dict[bytes, Copy] = {}
        self.by_leader: dict[str, dict[bytes, Copy]] = {}
        self.addresses: dict[str, str] = {}
        self.disks: dict[str, str] = {}            # node → its disk, in hexadecimal
        self.on_entry: Callable[[Copy], None] | None = None
        self.on_links: Callable[[], None] | None = None
        self.on_asked: Callable[[AskLeader], Awaitable[LeaderSays]] | None = None
        self.mend: Callable[[Copy], Awaitable[None]] | None = None
        self.on_described: Callable[[], CopiesDescribed] | None = None
        self.peers: Peers
        self._catalogue = catalogue
        self._tasks: set[asyncio.Task[Any]] = set()
        self._promises: dict[bytes, tuple[Copy, int]] = {}
        self._swaps: dict[bytes, tuple[ReplicaSetEntry, asyncio.Future[ReplicaSetEntry | None]]] = {}
        self._swapper: asyncio.Task[None] | None = None
        self._seals: dict[str, list[tuple[bytes, int, asyncio.Future[SealedShard]]]] = {}
        self._forgotten: dict[bytes, str] = {}     # copies whose entry is gone → their stream
        self._deleted: dict[str, None] = {}        # streams that were deleted while this node ran
        self._making: dict[bytes, ReplicaSetEntry] = {}
        self._telling: set[bytes] = set()              # shards whose entry is being told that our copy is made
        self._maker: asyncio.Task[None] | None = None
        self._dropping: dict[bytes, asyncio.Task[None]] = {}
        self._closed = False

    # -- what is here --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up every copy that the store says is here. Raises StreamkitError."""
        self.replica_sets.on_change.append(self._changed)
        for uuid, entry in list(self.replica_sets.entries.items()):
            self._changed(uuid, entry)
        while self._maker is not None:
            await asyncio.wait([self._maker])

    async def close(self) -> None:
        self._closed = True
        for copy in self.copies.values():
            copy.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work for a copy that takes a disk, a peer or the store. Ends with the node."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._closed:
            return
        if isinstance(error, StreamkitError):
            logger.warning("replica.work_failed", extra={"facts": {"error": str(error)}})
        else:
            logger.error("replica.work_broke", exc_info=error)

    def _changed(self, uuid: bytes, entry: ReplicaSetEntry | None) -> None:
        """The store says something of a shard."""
        if self._closed:
            return
        copy = self.copies.get(uuid)
        ours = None if entry is None else self._ours(entry)
        if copy is not None and entry is not None and ours == copy.log.incarnation:
            self._index(copy, entry)
            copy.follow_entry(entry)
            self._tell_made(uuid, entry)
            if self.on_entry is not None:
                self.on_entry(copy)
            return
        if copy is not None:
            self._drop(copy, entry)
        if entry is None or ours is None:
            self._making.pop(uuid, None)
            return
        self._making[uuid] = entry
        if self._maker is None:
            self._maker = self.run(self._make())

    def _ours(self, entry: ReplicaSetEntry) -> bytes | None:
        """The incarnation of the copy that is to be on this disk; None: there is to be none."""
        for member in entry.replica_set.copies:
            if member.node == self.node and is_on_disk(member.incarnation, self.disk):
                return member.incarnation
        return None

    def _index(self, copy: Copy, entry: ReplicaSetEntry) -> None:
        if copy.entry.leader != entry.leader:
            self.by_leader.get(copy.entry.leader, {}).pop(copy.uuid, None)
        self.by_leader.setdefault(entry.leader, {})[copy.uuid] = copy

    def _drop(self, copy: Copy, entry: ReplicaSetEntry | None) -> None:
        """The store does not list this copy any more."""
        copy.close()
        self.copies.pop(copy.uuid, None)
        self.by_leader.get(copy.entry.leader, {}).pop(copy.uuid, None)
        if entry is None:
            # A key that is merely missing removes nothing; a stream that was deleted does.
            self._forgotten[copy.uuid] = copy.entry.stream
            if copy.entry.stream in self._deleted:
                self._drop_logs([copy.uuid])
        elif entry.epoch >= copy.entry.epoch and self._ours(entry) is None:
            logger.info("replica.left", extra={"facts": {"shard": copy.uuid.hex(), "stream": entry.stream}})
            self._drop_logs([copy.uuid])

    async def _make(self) -> None:
        """Logs for copies that are to be here, all that are known of in one go."""
        try:
            while self._making:
                wanted, self._making = self._making, {}
                # What was there before goes first: a log that is about to be dropped is no copy.
                if dropping := [self._dropping[uuid] for uuid in wanted if uuid in self._dropping]:
                    await asyncio.wait(dropping)
                new: dict[bytes, NewShard] = {}
                # No promise is of an epoch that the store has not seen: one that the disk has lost is given again here,
                # before anything is taken from a leader.
                await self.directory.promise({uuid: entry.epoch for uuid, entry in wanted.items()})
                for uuid, entry in wanted.items():
                    incarnation = self._ours(entry)
                    assert incarnation is not None, "only those that name us are made"
                    log = self.directory.shards.get(uuid)
                    if log is None:
                        # Before its first leader a copy has promised nothing and lost nothing, nor has one that is
                        # known not to be made; later, an empty one stands where there may have been another: it votes
                        # once it holds what the leader holds.
                        certain = entry.epoch == 0 or entry.is_unmade(Member(self.node, incarnation))
                        new[uuid] = NewShard(incarnation, certain=certain, promised_epoch=entry.epoch)
                    elif log.incarnation != incarnation:
                        await self.directory.reset(log, start=0, incarnation=incarnation)
                await self.directory.create_shards(new)
                for uuid, entry in wanted.items():
                    self._take_up(uuid, entry)
        except StreamkitError:
            # A disk that is full now takes them later.
            self._making = {**wanted, **self._making}
            asyncio.get_running_loop().call_later(_MAKE_AGAIN_SECONDS, self._make_again)
            raise
        finally:
            self._maker = None

    def _make_again(self) -> None:
        """What could not be made, if it is still to be here."""
        waiting, self._making = self._making, {}
        for uuid in waiting:
            entry = self.replica_sets.entries.get(uuid)
            if entry is not None and uuid not in self.copies:
                self._changed(uuid, entry)

    def stream_deleted(self, name: str) -> None:
        """Said by the catalog. Copies whose entries go, or have gone, are dropped with their logs."""
        self._deleted[name] = None
        self._drop_logs([uuid for uuid, stream in self._forgotten.items() if stream == name])

    def stream_appeared(self, name: str, shards: Collection[bytes] = ()) -> None:
        """Its shards can be led from now on. shards: all that it has; a copy of another whose entry went is dropped."""
        self._deleted.pop(name, None)
        if shards:
            self._drop_logs([
                uuid for uuid, stream in self._forgotten.items() if stream == name and uuid not in shards
            ])
        if self.on_links is not None:
            self.on_links()

    def _drop_logs(self, uuids: list[bytes]) -> None:
        for uuid in uuids:
            self._forgotten.pop(uuid, None)
        gone = [uuid for uuid in uuids if uuid in self.directory.shards]
        if gone:
            task = self.run(self.directory.drop_shards(gone))
            self._dropping.update(dict.fromkeys(gone, task))
            task.add_done_callback(lambda _: self._dropped(gone, task))

    def _dropped(self, uuids: list[bytes], task: asyncio.Task[None]) -> None:
        for uuid in uuids:
            if self._dropping.get(uuid) is task:
                del self._dropping[uuid]

    def _take_up(self, uuid: bytes, made_for: ReplicaSetEntry) -> None:
        entry, log = self.replica_sets.entries.get(uuid), self.directory.shards.get(uuid)
        if entry is None or uuid in self.copies or uuid in self._making:
            return
        if self._ours(entry) is None:
            if log is not None and entry.epoch >= made_for.epoch:
                self._drop_logs([uuid])                # it was taken off the list while it was made
            return
        if log is None or self._ours(entry) != log.incarnation or uuid in self._dropping:
            self._making[uuid] = entry                 # it was dropped and listed anew meanwhile
            return
        copy = self.copies[uuid] = Copy(self, log, entry)
        self._index(copy, entry)
        self._tell_made(uuid, entry)
        copy.announce()
        if self.on_entry is not None:
            self.on_entry(copy)

    def _tell_made(self, uuid: bytes, entry: ReplicaSetEntry) -> None:
        """Our copy is on disk: leaders may feed it from now on."""
        ours = Member(self.node, self.copies[uuid].log.incarnation)
        if entry.is_unmade(ours) and uuid not in self._telling:
            self._telling.add(uuid)
            self.run(self._take_off(uuid, ours)).add_done_callback(lambda _: self._telling.discard(uuid))

    async def _take_off(self, uuid: bytes, ours: Member) -> None:
        """Somebody else's change to the entry, or a store that is down, only delays this."""
        while (entry := self.replica_sets.entries.get(uuid)) is not None and entry.is_unmade(ours):
            if await self.swap(uuid, entry.with_made(ours)) is None:
                await asyncio.sleep(_TELL_AGAIN_SECONDS)

    def find(self, copy: Copy) -> tuple[StreamDescription, Shard] | None:
        return self._catalogue.place(copy.uuid, copy.entry.stream)

    def durability(self, copy: Copy) -> Durability:
        found = self.find(copy)
        return found[0].config.durability if found is not None else Durability.FSYNC

    def native_address(self, node: str) -> str:
        return self.addresses.get(node, "")

    # -- leading -------------------------------------------------------------------------------------------

    def leads(self, copy: Copy, server: ShardServer) -> None:
        self._catalogue.serve(server)
        if self.on_entry is not None:
            self.on_entry(copy)

    def leads_no_more(self, copy: Copy, server: ShardServer) -> None:
        server.retired = copy.not_leader()
        self._catalogue.withdraw(server)
        for link in server.fail(server.retired):
            link.flush_soon()
        if self.on_entry is not None:
            self.on_entry(copy)

    # -- what many copies want at once ---------------------------------------------------------------------

    async def swap(self, uuid: bytes, entry: ReplicaSetEntry) -> ReplicaSetEntry | None:
        """Put `entry` in the place of the one it was made from; None: somebody else was faster, or the store is down.

        One transaction for all that ask while the one before is under way.
        """
        future: asyncio.Future[ReplicaSetEntry | None] = asyncio.get_running_loop().create_future()
        if uuid in self._swaps:
            return None
        self._swaps[uuid] = entry, future
        if self._swapper is None:
            self._swapper = self.run(self._swap_all())
        return await future

    async def _swap_all(self) -> None:
        batch: dict[bytes, tuple[ReplicaSetEntry, asyncio.Future[ReplicaSetEntry | None]]] = {}
        try:
            while self._swaps:
                batch, self._swaps = self._swaps, {}
                found = await self.replica_sets.swap_many({uuid: entry for uuid, (entry, _) in batch.items()})
                for uuid, (_, future) in batch.items():
                    became = found[uuid]
                    if isinstance(became, StoreUnavailable):
                        logger.info("store.unavailable", extra={"facts": {"shard": uuid.hex(), "error": str(became)}})
                        became = None
                    if not future.done():
                        future.set_result(became)
        finally:
            self._swapper = None
            # After an error that nobody foresaw: whoever asked goes on, and may ask again.
            unasked, self._swaps = self._swaps, {}
            for _, future in (*batch.values(), *unasked.values()):
                if not future.done():
                    future.set_result(None)

    def promise_soon(self, copy: Copy, epoch: int) -> None:
        """copy.promised(epoch) once it is on disk; one sync for all that ask in this turn of the loop."""
        if not self._promises:
            asyncio.get_running_loop().call_soon(self._promise)
        self._promises[copy.uuid] = copy, epoch

    def _promise(self) -> None:
        batch, self._promises = self._promises, {}
        if not self._closed:
            self.run(self._promise_all(batch))

    async def _promise_all(self, batch: dict[bytes, tuple[Copy, int]]) -> None:
        while True:
            try:
                await self.directory.promise({uuid: epoch for uuid, (_, epoch) in batch.items()})
                break
            except DiskFull:
                await asyncio.sleep(_MAKE_AGAIN_SECONDS)
        for copy, epoch in batch.values():
            copy.promised(epoch)

    async def ask_seal(self, node: str, uuid: bytes, epoch: int) -> SealedShard:
        """What that node's copy holds, once it promised. One message for all that ask in this turn of the loop."""
        loop = asyncio.get_running_loop()
        if node not in self._seals:
            self._seals[node] = []
            loop.call_soon(self._send_seals, node)
        future: asyncio.Future[SealedShard] = loop.create_future()
        self._seals[node].append((uuid, epoch, future))
        return await future

    async def voter(self, member: Member, uuid: bytes) -> SealedShard | None:
        """What that copy holds, if it may vote; None when it may not, or cannot be asked."""
        try:
            said = await self.ask_seal(member.node, uuid, 0)
        except StreamkitError:
            return None
        return said if said.known and said.certain and said.incarnation == member.incarnation else None

    def _send_seals(self, node: str) -> None:
        asked = self._seals.pop(node)
        if not self._closed:
            self.run(self._seal_at(node, asked))

    async def _seal_at(self, node: str, asked: list[tuple[bytes, int, asyncio.Future[SealedShard]]]) -> None:
        try:
            answer = await self.peers.ask(
                node, Seal(tuple((uuid, epoch) for uuid, epoch, _ in asked)), _SEAL_TIMEOUT_MS
            )
            assert isinstance(answer, Sealed) and len(answer.shards) == len(asked), "one answer for each, in order"
            for (_, _, future), shard in zip(asked, answer.shards, strict=True):
                if not future.done():
                    future.set_result(shard)
        except StreamkitError as error:
            for _, _, future in asked:
                if not future.done():
                    future.set_exception(error)

    # -- what peers say ------------------------------------------------------------------------------------

    def sections(self, node: str, sections: list[Section]) -> None:
        for section in sections:
            copy = self.copies.get(section.shard)
            if copy is None:
                self.peers.acknowledge(node, section.shard, _NOBODY, section.epoch, Verdict.UNKNOWN, 0)
                continue
            try:
                copy.offered(node, section)
            except Exception:
                # A defect here, or in what was sent: the link and all other shards go on, this one later.
                logger.exception("replica.section_failed", extra={"facts": {"shard": copy.uuid.hex(), "from": node}})
                self.peers.acknowledge(
                    node, copy.uuid, copy.log.incarnation, section.epoch, Verdict.REFUSED, copy.log.log_end
                )

    async def asked(self, node: str, message: PeerRequest) -> PeerAnswer:
        if isinstance(message, Seal):
            return await self._seal_all(message)
        if isinstance(message, Hear):
            return Heard(self._heard_ms(message.node))
        if isinstance(message, DescribeCopies):
            assert self.on_described is not None, "set before there are links"
            return self.on_described()
        if isinstance(message, AskLeader):
            assert self.on_asked is not None, "set before there are links"
            return await self.on_asked(message)
        assert isinstance(message, DigestRange), "the connection lets nothing else through"
        crc, batches, end = await self._log(message.uuid).digest(message.start, message.end)
        return Digest(crc, batches, end)

    async def _seal_all(self, message: Seal) -> Sealed:
        """Copies that cannot promise now, because they are being cut, hold the others up for a moment only."""
        tasks = [asyncio.ensure_future(self._sealed(uuid, epoch)) for uuid, epoch in message.shards]
        try:
            await asyncio.wait(tasks, timeout=_SEAL_SECONDS)
            return Sealed(tuple(
                task.result() if task.done() else SealedShard(uuid, False)
                for task, (uuid, _) in zip(tasks, message.shards, strict=True)
            ))
        finally:
            for task in tasks:
                task.cancel()

    def _heard_ms(self, node: str) -> int:
        if node == self.node:
            return 0
        age_ms = self.peers.heard_ms(node) if self.peers.connected(node) else None
        return -1 if age_ms is None else age_ms

    async def _sealed(self, uuid: bytes, epoch: int) -> SealedShard:
        copy = self.copies.get(uuid)
        if copy is None:
            return SealedShard(uuid, False)
        sealed = await copy.seal(epoch)
        # Behind damage nobody can read, so nobody could adopt it. A copy that is damaged does not vote: what was
        # acknowledged is on one that does.
        damages = copy.log.damages
        end = min([sealed.log_end, *(found.sequence for found in damages if found.sequence >= sealed.high_watermark)])
        return SealedShard(
            uuid, True, sealed.epoch, sealed.member.incarnation, sealed.certain and not damages, sealed.log_start, end,
            sealed.high_watermark, tuple(pair for pair in sealed.epochs if pair[1] < end or end == sealed.log_end),
            sealed.doubtful,
        )  # fmt: skip

    async def read_log(self, uuid: bytes, start: int, bytes_max: int) -> Fetched:
        """Batches from `start` on up to the log's end, committed or not, for a peer that adopts or repairs."""
        log = self._log(uuid)
        start = max(start, log.log_start)
        batches = log.read(start, log.log_end, bytes_max)
        if batches is None:
            batches = await log.read_cold(start, log.log_end, bytes_max)
        copy = self.copies.get(uuid)
        known = copy.high_watermark if copy is not None else log.log_start
        views = [memoryview(batch) for batch in batches]
        return Fetched(views, known, log.log_start, log.log_end, next_sequence(batches, start))

    def link_up(self, node: str) -> None:
        self._links_changed()

    def link_down(self, node: str) -> None:
        self._links_changed()

    def _links_changed(self) -> None:
        if self.on_links is not None:
            self.on_links()

    def _log(self, uuid: bytes) -> ShardLog:
        try:
            return self.directory.shards[uuid]
        except KeyError:
            raise InvalidRequest(
                "this node has no copy of the shard", try_="look at the replica set", field="shard", value=uuid.hex()
            ) from None

    # -- what the disk says --------------------------------------------------------------------------------

    def progressed(self, uuids: list[bytes]) -> None:
        """Storage got further with these logs; those that this node leads are the server's."""
        copies = self.copies
        for uuid in uuids:
            copy = copies.get(uuid)
            if copy is not None and copy.server is None:
                copy.progressed()

    def failed(self) -> None:
        """The disk is gone: whoever leads here steps down, so that others may."""
        for copy in self.copies.values():
            copy.step_down()
