"""One copy of a shard on this node: carries out what the rules of `replication` say, in whatever role.

    following   sections from a leader ▸ Follower.step ▸ log.accept ▸ the disk ▸ answers
    standing    a swap won ▸ everyone sealed ▸ the best log adopted
    leading     a ShardServer takes puts, a feed for each other copy carries them on

The rules are asked on the event loop and never wait; what takes the disk or a peer is a task, and the rules are
told when it is done. Made and looked up by `copies.Copies`, which gathers what many copies want at one moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from streamkit.broker.feed import Feed
from streamkit.broker.shard_server import ShardServer
from streamkit.errors import CorruptBatch, CorruptFile, DiskFull, NotLeader, StreamkitError
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.model.stream import Durability
from streamkit.protocol.frames import Section
from streamkit.protocol.peers import SealedShard
from streamkit.replication.agreement import epoch_at
from streamkit.replication.candidate import Candidate
from streamkit.replication.effects import Adopt, Answer, Effects, Verdict
from streamkit.replication.events import (
    Adopted,
    Appended,
    EpochStarted,
    Flushed,
    Offered,
    Progressed,
    Promised,
    SealAsked,
    Sealed,
    Truncated,
)
from streamkit.replication.follower import Follower
from streamkit.replication.leader import Leader
from streamkit.replication.replica import Ends
from streamkit.replication.replica_set import Member, ReplicaSet
from streamkit.storage import ShardLog

if TYPE_CHECKING:
    from streamkit.broker.copies import Copies

logger = logging.getLogger("streamkit.broker")

_HEADER = struct.Struct("<4xIQI")         # of a batch header: batch_bytes, base_sequence, epoch
_COUNT_AT = 56
_LEVELS = (Durability.FSYNC, Durability.OS, Durability.LEADER)
_ASK_AGAIN_SECONDS = 0.3
_CAMPAIGN_SECONDS = 5.0
_ADOPT_BYTES = 4 * 1024 * 1024
_ADOPT_TIMEOUT_MS = 5_000


class Copy:
    """entry: what the store said last. server: while this node leads. stood_s: when it last tried to."""

    __slots__ = (
        "_becoming", "_campaign", "_copies", "_feeds", "_leader", "_sealing", "candidate", "closed", "entry",
        "epoch_start", "follower", "leader_end", "level", "log", "next_try_s", "server", "speaker", "uuid",
    )  # fmt: skip

    def __init__(self, copies: Copies, log: ShardLog, entry: ReplicaSetEntry) -> None:
        self._copies = copies
        self.uuid = log.uuid
        self.log = log
        self.entry = entry
        whole = not log.damages and not log.facts.damaged
        self.follower = Follower(log, promised=log.promised_epoch, certain=log.certain and whole)
        self.follower.whole = whole
        self.candidate: Candidate | None = None
        self.server: ShardServer | None = None
        self.level = Durability.FSYNC              # what the last leader asked answers for
        self.speaker = ""                          # the node that leads the epoch we promised
        self.epoch_start = 0
        self.next_try_s = 0.0
        self.leader_end = 0                        # what the last leader said of its own log
        self.closed = False
        self._becoming = False                     # certain: the disk is about to say so
        self._leader: Leader | None = None
        self._feeds: dict[str, Feed] = {}
        self._sealing: list[asyncio.Future[None]] = []
        self._campaign: asyncio.Task[None] | None = None

    # -- what feeds and readers ask ------------------------------------------------------------------------

    @property
    def replica_set(self) -> ReplicaSet:
        return self.entry.replica_set

    @property
    def epoch(self) -> int:
        return self._leader.epoch if self._leader is not None else self.follower.promised

    @property
    def durability(self) -> Durability:
        return self._leader.durability if self._leader is not None else self.level

    @property
    def high_watermark(self) -> int:
        return self.server.high_watermark if self.server is not None else self.follower.high_watermark

    @property
    def incarnation(self) -> bytes:
        return self.log.incarnation

    @property
    def is_established(self) -> bool:
        """It leads, and its epoch's first batch is on a majority."""
        return self.server is not None and self.server.high_watermark > self.epoch_start

    @property
    def is_standing(self) -> bool:
        """It is between a swap that was won and leading, or giving up."""
        return self._campaign is not None and not self._campaign.done()

    @property
    def is_member(self) -> bool:
        """It is counted: only such a copy may lead."""
        return any(member.incarnation == self.log.incarnation for member in self.replica_set.members)

    def feed(self, node: str) -> Feed | None:
        return self._feeds.get(node)

    def feeds(self) -> dict[str, Feed]:
        """By node, as they are now."""
        return dict(self._feeds)

    def not_leader(self) -> NotLeader:
        leader = self.entry.leader if self.entry.leader != self._copies.node else ""
        return NotLeader(
            f"node {self._copies.node} does not lead the shard", try_="ask its leader, or try again in a moment",
            shard=self.uuid.hex(), epoch=self.entry.epoch, leader=leader,
            address=self._copies.native_address(leader),
        )  # fmt: skip

    # -- following -----------------------------------------------------------------------------------------

    def offered(self, node: str, section: Section) -> None:
        """A section of a frame. Its batches are good for this call only."""
        follower, log = self.follower, self.log
        before = log.log_end
        end, differs_at = section.start, None
        if len(section):
            end = before + 1                       # at least; where a run really ends, log.accept says
            if section.start < before:
                end, differs_at = _compare(section, log)
        offer = Offered(
            section.epoch, section.start, end, section.previous_epoch, section.high_watermark,
            section.log_start, section.leader_end, section.epoch_start, differs_at,
        )  # fmt: skip
        if section.epoch >= follower.promised:
            self.speaker = node
        effects = follower.step(offer)
        if not effects.hear:
            self._carry(effects, node)
            return
        self.level = _LEVELS[section.level]
        self.leader_end = section.leader_end
        if effects.accept:
            try:
                end = log.accept(section, epoch=section.epoch, durability=self.level)
            except CorruptBatch as error:
                logger.error("replica.refused_batches", extra={"facts": {"shard": self.uuid.hex(), "from": node,
                                                                         "error": str(error)}})  # fmt: skip
                self._answer(node, Answer(Verdict.REFUSED, section.epoch, before))      # the same again, later
                return
            except StreamkitError as error:
                logger.debug("replica.cannot_append %s", error)
                self._answer(node, Answer(Verdict.REFUSED, section.epoch, before))
                return
            follower.step(Appended(end))
        heard = follower.heard(offer, self._safe_end())
        if heard.certain or heard.answer is not None:
            self._carry(heard, node)
        if offer.log_start > log.log_start and follower.high_watermark >= offer.log_start:
            log.drop_before(offer.log_start)

    def _safe_end(self) -> int:
        """How far the log is safe at the level that the leader asks for."""
        log = self.log
        if self.level is Durability.FSYNC:
            return log.durable_end
        return log.written_end if self.level is Durability.OS else log.log_end

    def progressed(self) -> None:
        """Storage got further with this log, while it does not lead."""
        effects = self.follower.step(Flushed(self._safe_end()))
        if effects.answer is not None:
            self._answer(self.speaker, effects.answer)

    def _answer(self, node: str, answer: Answer) -> None:
        if node and node != self._copies.node:
            self._copies.peers.acknowledge(
                node, self.uuid, self.log.incarnation, answer.epoch, answer.verdict, answer.end,
                min(self.log.written_end, self.follower.matched),
            )  # fmt: skip

    def _carry(self, effects: Effects, node: str) -> None:
        if effects.step_down:
            self.step_down()
        if effects.promise is not None:
            self._copies.promise_soon(self, effects.promise)
        if effects.truncate is not None or effects.reset is not None:
            self._copies.run(self._cut(effects))
        if effects.certain:
            self._want_vote()
        if effects.answer is not None:
            self._answer(node, effects.answer)
        if effects.seal:
            waiting, self._sealing = self._sealing, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def announce(self) -> None:
        """It begins here, perhaps in the place of another that had told its leader what it held."""
        self._answer(self.entry.leader, Answer(Verdict.MISMATCH, self.entry.epoch, self.log.log_end))

    def promised(self, epoch: int) -> None:
        """That promise is on disk."""
        self._carry(self.follower.step(Promised(epoch)), self.speaker)

    async def _cut(self, effects: Effects) -> None:
        directory, log = self._copies.directory, self.log
        if effects.reset is not None:
            logger.info("replica.begins_anew", extra={"facts": {"shard": self.uuid.hex(), "start": effects.reset}})
        while True:
            try:
                if effects.reset is not None:
                    await directory.reset(log, start=effects.reset, incarnation=log.incarnation)
                else:
                    assert effects.truncate is not None, "one of the two"
                    await directory.truncate(log, effects.truncate)
                break
            except DiskFull:
                await asyncio.sleep(_ASK_AGAIN_SECONDS)    # until then this copy takes nothing, and says nothing
        if not log.certain:                        # it was emptied, or the cut went through damage
            self.follower.doubt()
        self._carry(self.follower.step(Truncated()), self.speaker)

    def damaged(self) -> None:
        """Records that were durable here cannot be read: until they can, this copy does not vote."""
        self.follower.whole = False
        if self.follower.certain or self.log.certain:
            self.follower.doubt()
            self.log.certain = False
            self._copies.run(self._copies.directory.set_certain(self.log, False))

    def mended(self) -> None:
        """The last damaged range is whole again; it votes once it is known to hold what the leader holds."""
        self.follower.whole = True
        if self.log.certain:                       # it was only suspected, from what an earlier process wrote
            self.follower.certain = True
        self.confirm()
        if self.server is None:
            # Nothing may come of its own on a quiet shard: let the leader say once more what it holds.
            self._answer(self.speaker, Answer(Verdict.MISMATCH, self.follower.promised, self.log.log_end))

    def confirm(self) -> None:
        """Called now and then. A leader that is whole votes once its epoch has begun: its log is the shard's."""
        follower = self.follower
        if self.is_established and follower.whole:
            follower.certain = True
        if follower.certain and not self.log.certain:
            self._want_vote()

    def _want_vote(self) -> None:
        if not self._becoming:
            self._becoming = True
            self._copies.run(self._become_certain())

    async def _become_certain(self) -> None:
        """Until the disk says so, or this copy has come to doubt itself again. Until then `seal` does not vote."""
        follower = self.follower
        try:
            while follower.certain and not self.closed:
                try:
                    await self._copies.directory.set_certain(self.log, True)
                    return
                except CorruptFile:
                    self.damaged()
                except DiskFull:
                    await asyncio.sleep(_ASK_AGAIN_SECONDS)
        except BaseException:
            follower.doubt()
            raise
        finally:
            self._becoming = False

    # -- sealing -------------------------------------------------------------------------------------------

    async def seal(self, epoch: int) -> Sealed:
        """Promise `epoch` if nothing newer is promised, and say what this copy holds. epoch 0: only say."""
        if epoch:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sealing = [*(other for other in self._sealing if not other.done()), future]
            self._carry(self.follower.step(SealAsked(epoch)), "")
            await future
        log = self.log
        return Sealed(
            Member(self._copies.node, log.incarnation), self.follower.durable_promise,
            self.follower.certain and log.certain, log.log_start, log.log_end, self.high_watermark, tuple(log.epochs),
            log.doubtful,
        )  # fmt: skip

    # -- standing ------------------------------------------------------------------------------------------

    async def stand(self, unmade: Sequence[Member] = ()) -> bool:
        """Try to lead. False: somebody else was faster, or the store cannot be had.

        unmade: of the first leader: members whose copies it did not find.
        """
        entry = self.entry
        kept = "" if entry.target_leader == self._copies.node else entry.target_leader
        wanted = msgspec.structs.replace(
            entry, epoch=max(entry.epoch, self.follower.promised) + 1, leader=self._copies.node, target_leader=kept
        )
        if unmade:
            wanted = wanted.with_unmade(unmade)
        won = await self._copies.swap(self.uuid, wanted)
        if won is None:
            return False
        await self.campaign(won)
        return self.server is not None

    async def campaign(self, entry: ReplicaSetEntry) -> None:
        """The epoch of `entry` is ours in the store: seal, adopt, lead. Returns when it leads or gave up."""
        if self._campaign is not None:
            self._campaign.cancel()
        candidate = Candidate(entry.replica_set, accept_loss=entry.accept_loss)
        self._campaign = task = self._copies.run(self._seek(candidate))
        await asyncio.wait([task])

    async def _seek(self, candidate: Candidate) -> None:
        self._stop_leading()
        replies: asyncio.Queue[Sealed] = asyncio.Queue()
        replies.put_nowait(await self.seal(candidate.epoch))       # our own promise comes first: it ends older roles
        if self.follower.promised != candidate.epoch:
            return                                     # somebody newer came by meanwhile
        self.candidate = candidate
        asking = self._copies.run(self._ask_all(candidate, replies))
        try:
            async with asyncio.timeout(_CAMPAIGN_SECONDS):
                effects = Effects()
                while effects.lead is None and self.candidate is candidate:
                    effects = candidate.step(await replies.get())
                    if effects.step_down:
                        return
                    if effects.adopt is not None:
                        await self._adopt(candidate, effects)
                        effects = candidate.step(Adopted())
            if self.candidate is candidate and await self._is_whole(candidate):
                await self._lead(candidate, effects)
        except TimeoutError:
            self._explain(candidate)
        except StreamkitError as error:
            logger.info("election.broke_off", extra={"facts": {"shard": self.uuid.hex(), "error": str(error)}})
        finally:
            asking.cancel()
            if self.candidate is candidate:
                self.candidate = None

    async def _is_whole(self, candidate: Candidate) -> bool:
        """Whether it may lead as far as damage goes: what cannot be read holds puts that would not be known again.

        It is mended first. What nobody else has and nobody was told of is cut off, with all that lies behind it. What
        was acknowledged and no copy of them all can give is gone for good: waiting for it would help nobody.
        """
        log = self.log
        if log.damages and self._copies.mend is not None:
            await self._copies.mend(self)
        if not log.damages:
            return True
        end, first = candidate.certain_end, min(damage.sequence for damage in log.damages)
        if end is not None and end <= first:
            self.follower.cutting = True
            await asyncio.shield(self._copies.run(self._cut(Effects(truncate=first))))
        elif not candidate.is_complete:
            logger.info("election.damaged", extra={"facts": {"shard": self.uuid.hex(), "epoch": candidate.epoch}})
            return False
        return True

    def _explain(self, candidate: Candidate) -> None:
        """An election that leads nowhere says why, and what would help."""
        answers = candidate.answers
        unsure = sorted(member.node for member, certain in answers.items() if not certain)
        silent = sorted(member.node for member in candidate.replica_set.voters if member not in answers)
        because = [f"{', '.join(silent)} cannot be asked"] if silent else []
        if unsure:
            because.append(f"{', '.join(unsure)} may have lost records (loss of power, damage) and cannot vote")
        logger.error("election.stalled", extra={"facts": {
            "shard": self.uuid.hex(), "epoch": candidate.epoch,
            "reason": "; ".join(because) or "the disk or the links are slow",
            "try": f"start {', '.join(silent)}" if silent else "streamkit cluster accept-loss STREAM/SHARD",
        }})  # fmt: skip

    async def _ask_all(self, candidate: Candidate, replies: asyncio.Queue[Sealed]) -> None:
        """Ask every copy to seal, and those that cannot be reached again and again."""
        async with asyncio.TaskGroup() as group:
            for member in candidate.replica_set.copies:
                if member.node != self._copies.node:
                    group.create_task(self._ask(candidate, member, replies))

    async def _ask(self, candidate: Candidate, member: Member, replies: asyncio.Queue[Sealed]) -> None:
        while self.candidate is candidate:
            try:
                answer = await self._copies.ask_seal(member.node, self.uuid, candidate.epoch)
            except StreamkitError:
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                continue
            if answer.known:
                replies.put_nowait(_to_sealed(member.node, answer))
                return
            await asyncio.sleep(_ASK_AGAIN_SECONDS)        # it may be about to make its copy

    async def _adopt(self, candidate: Candidate, effects: Effects) -> None:
        adopt, log = effects.adopt, self.log
        assert adopt is not None, "asked for by the rules"
        if effects.truncate is not None or adopt.reset:
            # The cut goes on when this campaign does not: until it is done, nothing is taken from a newer leader.
            self.follower.cutting = True
            cut = Effects(truncate=effects.truncate, reset=adopt.start if adopt.reset else None)
            await asyncio.shield(self._copies.run(self._cut(cut)))
        if log.log_end != adopt.start:
            raise self._moved()
        await self._fetch(candidate, adopt)
        if log.log_end != adopt.end:
            raise self._moved()
        logger.info("election.adopted", extra={"facts": {"shard": self.uuid.hex(), "from": adopt.node,
                                                         "start": adopt.start, "end": adopt.end}})  # fmt: skip

    def _moved(self) -> NotLeader:
        return NotLeader(
            "a log is not what it was when the epoch was sealed", try_="stand again", shard=self.uuid.hex(),
            epoch=self.follower.promised, leader="", address="",
        )  # fmt: skip

    async def _fetch(self, candidate: Candidate, adopt: Adopt) -> None:
        """What that copy held when it promised, and nothing that a newer leader has put in its place meanwhile."""
        log = self.log
        durability = self._copies.durability(self)
        while log.log_end < adopt.end:
            fetched = await self._copies.peers.read_log(
                adopt.node, self.uuid, log.log_end, _ADOPT_BYTES, _ADOPT_TIMEOUT_MS
            )
            for batch in fetched.batches:
                if log.log_end >= adopt.end:
                    break
                _, base, epoch = _HEADER.unpack_from(batch)
                if epoch_at(adopt.epochs, base) != epoch:
                    raise self._moved()
                log.accept(batch, epoch=candidate.epoch, durability=durability)
            if not fetched.batches:
                raise self._moved()

    # -- leading -------------------------------------------------------------------------------------------

    async def _lead(self, candidate: Candidate, effects: Effects) -> None:
        copies, log, epoch = self._copies, self.log, candidate.epoch
        if self.follower.whole and not (self.follower.certain and log.certain):
            # A damaged copy may lead, for its log is the best there is, and does not vote when it is asked again.
            with contextlib.suppress(CorruptFile):
                await copies.directory.set_certain(log, True)
                self.follower.certain = True
        if self.candidate is not candidate or self.follower.promised != epoch or self.closed:
            return                                     # somebody newer came by meanwhile
        found = copies.find(self)
        if found is None:
            return                                     # its stream is gone
        stream, shard = found
        durability = stream.config.durability
        assert effects.lead is not None, "the rules said so"
        self.epoch_start = log.log_end
        log.start_epoch(epoch, copies.clock.now_ms(), durability is Durability.FSYNC)
        nothing, counted = Ends(0, 0, 0), candidate.replica_set.members
        self._leader = leader = Leader(
            epoch=epoch, replica=log.incarnation, durability=durability, high_watermark=effects.lead,
            replicas={
                member.incarnation: self._own_ends() if member.incarnation == log.incarnation else nothing
                for member in counted
            },
            others=[member.incarnation for member in candidate.replica_set.copies if member not in counted],
        )  # fmt: skip
        leader.step(EpochStarted(epoch, self.epoch_start))
        log.set_range(shard.hash_start, shard.hash_end - 1)
        self.candidate = None
        self.server = server = ShardServer(
            stream, shard, log, replica=log.incarnation, counters=copies.counters.streams[stream.name], leader=leader
        )
        self._feed_all()
        copies.leads(self, server)
        server.progressed()
        logger.debug("shard.led", extra={"facts": {"shard": self.uuid.hex(), "epoch": epoch}})

    def _own_ends(self) -> Ends:
        log = self.log                                 # what is on disk is written, whatever its batches asked for
        return Ends(log.log_end, max(log.written_end, log.durable_end), log.durable_end)

    def follow_entry(self, entry: ReplicaSetEntry) -> None:
        """The store says something new of this shard. Safety never rests on it."""
        self.entry = entry
        leader = self._leader
        if leader is None or self.server is None:
            return
        if entry.epoch > leader.epoch and entry.leader != self._copies.node:
            self.step_down()
            return
        if entry.epoch == leader.epoch:
            self._feed_all()

    def _feed_all(self) -> None:
        """Feeds to whom the store lists, but for copies that are still to be made."""
        assert self.server is not None, "who leads feeds"
        entry = self.entry                             # an older life of our own copy may still be listed
        wanted = {member.node for member in entry.replica_set.copies if not entry.is_unmade(member)}
        wanted.discard(self._copies.node)
        for node in [node for node in self._feeds if node not in wanted]:
            self._feeds.pop(node).close()
        for node in sorted(wanted - self._feeds.keys()):
            self._feeds[node] = self._copies.peers.feed(self, node)
            self._feeds[node].ready()
        self.server.feeds = tuple(self._feeds.values())

    def on_acknowledged(self, node: str, incarnation: bytes, epoch: int, verdict: int, end: int) -> None:
        """From a feed: a copy answered."""
        if verdict == Verdict.STALE and self._leader is not None and epoch > self._leader.epoch:
            self.step_down()
            return
        server = self.server
        if server is None or verdict != Verdict.ACCEPTED:
            return
        links = server.advance(Progressed(incarnation, epoch, Ends(end, end, end)))
        if links is not None:
            for link in links:
                link.flush_soon()

    def on_feed_broken(self, node: str) -> None:
        """The link is gone; the feed goes on by itself when it is back."""

    def step_down(self) -> None:
        """A newer epoch exists: nothing more is appended or acknowledged in ours."""
        if self.candidate is not None and self._campaign is not None:
            self._campaign.cancel()
        self.candidate = None
        if self.server is not None:
            logger.info("shard.stepped_down", extra={"facts": {"shard": self.uuid.hex(), "epoch": self.epoch}})
        self._stop_leading()

    def _stop_leading(self) -> None:
        server, self.server, self._leader = self.server, None, None
        for feed in self._feeds.values():
            feed.close()
        self._feeds = {}
        if server is not None:
            self.follower.high_watermark = max(self.follower.high_watermark, server.high_watermark)
            self._copies.leads_no_more(self, server)

    def close(self) -> None:
        self.closed = True
        self.step_down()
        if self._campaign is not None:
            self._campaign.cancel()


def _to_sealed(node: str, answer: SealedShard) -> Sealed:
    return Sealed(
        Member(node, answer.incarnation), answer.epoch, answer.certain, answer.log_start, answer.log_end,
        answer.high_watermark, answer.epochs, answer.doubtful,
    )  # fmt: skip


def _compare(section: Section, log: ShardLog) -> tuple[int, int | None]:
    """(end of the run, the first batch in it that the log holds otherwise), for a run that overlaps the log."""
    data, position, end = memoryview(section), 0, section.start
    differs_at = None
    while position + _COUNT_AT + 4 <= len(data):
        size, base, epoch = _HEADER.unpack_from(data, position)
        if differs_at is None and base < log.log_end and epoch_at(log.epochs, base) != epoch:
            differs_at = base
        end = base + int.from_bytes(data[position + _COUNT_AT : position + _COUNT_AT + 4], "little")
        position += max(size, 1)
    return end, differs_at
