"""One shard, led by this node: append, wait for the high watermark, acknowledge.

    put ──▶ log.append ──▶ waiting (ordered by end) ──▶ storage says how far the disk is ──▶ Leader.step
                                                              │ high watermark moved
                          PUT_OKs, many in one buffer  ◀──────┴──────▶ fetches that waited

A batch is refused before it is appended or acknowledged after it is safe; there is nothing between. The
`Leader` decides what is safe; this class only carries its effects out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from streamkit._core.batch import Batch, read_header
from streamkit.broker.counters import StreamCounters
from streamkit.errors import NotLeader, ProducerError, RecordTooLarge, StreamkitError
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability, StreamDescription
from streamkit.protocol.frames import PutFrame
from streamkit.protocol.messages import BatchSettled, CancelBatch
from streamkit.replication.events import EpochStarted, Progressed
from streamkit.replication.leader import Leader
from streamkit.replication.replica import Ends
from streamkit.storage import ShardLog

if TYPE_CHECKING:
    from streamkit.broker.feed import Feed
    from streamkit.broker.link import Link

_RECORD_OVERHEAD_BYTES = 12    # table entry and record header
_FATES = ("cancelled", "stored", "forgotten", "cancelled")     # by what the log's answer to `cancel` calls `duplicate`

# A put that waits: (end, link, request_id, base_sequence, append_time_ms, duplicate, batch_bytes, arrived_s)
_Waiting = tuple[int, "Link", int, int, int, int, int, float]


class ShardServer:
    """Shards are many and mostly idle: everything that only a busy one needs is made on first use."""

    __slots__ = (
        "_acks", "_confirmed_at", "_leader", "_local", "_replica", "_watchers", "counters", "duplicates", "epoch",
        "feeds", "gone", "high_watermark", "immediate", "log", "put_bytes", "put_records", "reads", "record_bytes_max",
        "retired", "shard", "stream_name", "trimmed_records",
    )  # fmt: skip

    def __init__(
        self, stream: StreamDescription, shard: Shard, log: ShardLog, *, replica: bytes, counters: StreamCounters,
        leader: Leader | None = None,
    ) -> None:  # fmt: skip
        """replica: this node's name among the copies. counters: of the stream.

        leader: of the epoch that was won; None: there is one copy, and nobody to ask.
        """
        self.stream_name = stream.name
        self.shard = shard
        self.log = log
        self.epoch = shard.epoch if leader is None else leader.epoch
        self.feeds: tuple[Feed, ...] = ()          # to the other copies
        self.gone = False                          # its stream was deleted
        self.retired: StreamkitError | None = None     # it leads no more: the log is others' to change
        self.immediate = stream.config.durability is Durability.LEADER
        self.record_bytes_max = stream.config.record_bytes_max
        self.put_records = self.put_bytes = self.duplicates = self.trimmed_records = 0
        self.counters = counters
        self.reads: dict[str, list[int]] | None = None     # application ("": none) → [records, bytes] handed out
        self._replica = replica
        self._leader = leader or Leader(
            epoch=shard.epoch, replica=replica, replicas={replica: self._ends()}, durability=stream.config.durability
        )
        self.high_watermark = self._leader.high_watermark
        start = leader.epoch_start if leader is not None else None
        self._confirmed_at = 0 if start is None else start + 1     # from here on a majority is known to follow
        self._acks: deque[_Waiting] | None = None
        self._local: list[tuple[int, asyncio.Future[None]]] | None = None
        self._watchers: dict[object, Callable[[], None]] | None = None

    def learn(self, stream: StreamDescription, shard: Shard) -> None:
        """What the catalog says of them now."""
        self.shard = shard
        self.record_bytes_max = stream.config.record_bytes_max

    # -- puts ----------------------------------------------------------------------------------------------

    def put(self, link: Link, frame: PutFrame, now_ms: int, arrived_s: float) -> None:
        """Append, and answer once it is safe. Raises whatever the log refuses it for."""
        raw_bytes = frame.raw_bytes
        if raw_bytes > self.record_bytes_max:
            self._check_records(bytes(frame))
        log = self.log
        before = log.log_end
        # A PutFrame is a buffer over its batch, which type checkers for this Python cannot say.
        try:
            appended = log.append(
                frame, now_ms=now_ms, epoch=self.epoch, durability=self._leader.durability  # type: ignore[arg-type]
            )
        except ProducerError as error:
            if self.high_watermark < max(self._confirmed_at, error.facts.get("end", 0)):
                raise self._unconfirmed() from error
            raise
        end = appended.end_sequence
        if appended.duplicate:
            self.duplicates += 1
        else:
            if self._leader.epoch_start is None:
                self._leader.step(EpochStarted(self.epoch, before))
            self.put_records += end - appended.base_sequence
            self.put_bytes += raw_bytes
            for feed in self.feeds:
                feed.ready()
        acks = self._acks
        if acks is None:
            acks = self._acks = deque()
        if end <= self.high_watermark and not acks:
            link.acknowledge(
                frame.request_id, appended.base_sequence, appended.append_time_ms, self.epoch, appended.duplicate,
                self._leader.copies_needed, self._leader.durability is Durability.FSYNC,
            )  # fmt: skip
            return
        size = len(frame)
        link.unacknowledged_bytes += size
        acks.append(
            (end, link, frame.request_id, appended.base_sequence, appended.append_time_ms, appended.duplicate,
             size, arrived_s)
        )  # fmt: skip

    def _unconfirmed(self) -> NotLeader:
        # A longer log may yet win over this one and hold the very batch that is refused here: a producer that believed
        # the refusal would put it elsewhere, too.
        return NotLeader(
            f"whether {self.shard.id} is led here, or is closed, is not settled yet", try_="try again in a moment",
            shard=self.shard.uuid.hex(), epoch=self.epoch, leader="", address="",
        )  # fmt: skip

    async def append(self, batch: bytes, now_ms: int) -> int:
        """A put of this node itself: its base sequence, once it is safe. Raises NotLeader once it leads no more."""
        self._check_leading()
        before = self.log.log_end
        appended = self.log.append(batch, now_ms=now_ms, epoch=self.epoch, durability=self._leader.durability)
        self._grew(before)
        await self._safe(appended.end_sequence)
        return appended.base_sequence

    async def cancel(self, message: CancelBatch, now_ms: int) -> BatchSettled:
        """What became of a producer's batch; if it is not stored, it never will be. Answered once that is safe.

        Raises NotLeader, SequenceGap (an earlier batch is to be settled first), and whatever the log refuses it for.
        """
        self._check_leading()
        before = self.log.log_end
        try:
            found = self.log.cancel(
                producer_id=message.producer_id, producer_epoch=message.producer_epoch,
                producer_sequence=message.producer_sequence, records=message.records, age_ms=message.age_ms,
                now_ms=now_ms, epoch=self.epoch, durability=self._leader.durability,
            )  # fmt: skip
        except ProducerError as error:
            if self.high_watermark < self._confirmed_at:
                raise self._unconfirmed() from error
            raise
        if self.log.log_end != before:
            self._grew(before)
        fate = _FATES[found.duplicate]
        if fate == "forgotten" and self.high_watermark < self._confirmed_at:
            raise self._unconfirmed()
        await self._safe(found.end_sequence)
        return BatchSettled(
            fate, found.base_sequence, found.append_time_ms, self.epoch, self._leader.copies_needed,
            self._leader.durability is Durability.FSYNC,
        )  # fmt: skip

    def _grew(self, before: int) -> None:
        # This node itself appended; the log ended at `before`.
        if self._leader.epoch_start is None:
            self._leader.step(EpochStarted(self.epoch, before))
        for feed in self.feeds:
            feed.ready()
        if self.immediate:
            for link in self.progressed() or ():
                link.flush_soon()

    async def open_producer(self, producer_id: int, producer_epoch: int, now_ms: int) -> int:
        """The producer's next number here, once nothing of its elder instances can be stored any more.

        Raises ProducerFenced, NotLeader, LimitReached, DiskFull, DiskFailed.
        """
        self._check_leading()
        before = self.log.log_end
        try:
            following = self.log.open_producer(
                producer_id, producer_epoch, now_ms=now_ms, epoch=self.epoch, durability=self._leader.durability
            )
        except ProducerError as error:
            if self.high_watermark < self._confirmed_at:
                raise self._unconfirmed() from error
            raise
        if self.log.log_end > before and self._leader.epoch_start is None:
            self._leader.step(EpochStarted(self.epoch, before))
        for feed in self.feeds:
            feed.ready()
        if self.immediate:
            for link in self.progressed() or ():
                link.flush_soon()
        await self._safe(max(self.log.log_end, self._confirmed_at))
        return following

    def _check_leading(self) -> None:
        # Whoever kept hold of a former leader would write into a log that follows another, or is being compared.
        if self.retired is not None:
            raise self.retired

    def close_with(self, payload: bytes, now_ms: int) -> None:
        """Append the closing batch, unless there is one: puts are refused with ShardClosed from now on.

        Raises DiskFull, DiskFailed, NotLeader.
        """
        self._check_leading()
        log = self.log
        if log.closing is not None:
            return
        before = log.log_end
        log.append_control("close", payload, now_ms=now_ms, epoch=self.epoch, durability="fsync")
        self._grew(before)

    async def closed(self) -> int:
        """The shard's end, once its closing batch is below the high watermark. Raises DiskFailed, NotLeader."""
        end = self.log.closing_end
        await self._safe(end)
        return end

    def is_held_widely(self, end: int) -> bool:
        """Whether a majority holds what is before `end`; in streams whose high watermark does not say so, too."""
        holders = 1 + sum(feed.matched is not None and feed.matched >= end for feed in self.feeds)
        return not self.immediate or 2 * holders > len(self.feeds) + 1

    async def _safe(self, end: int) -> None:
        if end > self.high_watermark:
            self._check_leading()
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._local is None:
                self._local = []
            self._local.append((end, done))
            await done

    def _check_records(self, batch: bytes) -> None:
        """Only for batches that could hold a record above the limit: looks at each."""
        header = read_header(batch)
        largest = max(0, header.raw_bytes - _RECORD_OVERHEAD_BYTES)
        if header.record_count > 1:
            # Key and value of each; a record's headers count against the limit where the record is made.
            opened = Batch(batch)
            sizes = zip(opened.keys(), opened.values(), strict=True)
            largest = max(len(key.encode()) + len(value) for key, value in sizes)
        if largest > self.record_bytes_max:
            raise RecordTooLarge(
                f"a record is {largest} bytes; stream {self.stream_name} takes {self.record_bytes_max}",
                try_="streamkit stream alter … --record-bytes-max, or store the body elsewhere and put a reference",
                size_bytes=largest, limit_bytes=self.record_bytes_max,
            )  # fmt: skip

    # -- what the disk says --------------------------------------------------------------------------------

    def _ends(self) -> Ends:
        log = self.log                                 # what is on disk is written, whatever its batches asked for
        durable_end = log.durable_end
        return Ends(log.log_end, max(log.written_end, durable_end), durable_end)

    def progressed(self) -> set[Link] | None:
        """Storage got further with this shard; the links that have acknowledgements to send now."""
        return self.advance(Progressed(self._replica, self.epoch, self._ends()))

    def advance(self, news: Progressed) -> set[Link] | None:
        """A copy got further, this one or another; the links that have acknowledgements to send now."""
        effects = self._leader.step(news)
        if effects.high_watermark is None:
            return None
        for feed in self.feeds:
            feed.ready()
        self.high_watermark = high_watermark = effects.high_watermark
        links: set[Link] | None = None
        if self._acks and self._acks[0][0] <= high_watermark:
            links = self._acknowledge(self._acks, high_watermark)
        if self._local:
            self._finish_local(high_watermark)
        if self._watchers:
            watchers, self._watchers = self._watchers, None
            for wake in watchers.values():
                wake()
        return links

    def _acknowledge(self, acks: deque[_Waiting], high_watermark: int) -> set[Link]:
        links: set[Link] = set()
        add, epoch = links.add, self.epoch
        replicas, synced = self._leader.copies_needed, self._leader.durability is Durability.FSYNC
        now_s = asyncio.get_running_loop().time()
        last_arrived, same = acks[0][7], 0
        link: Link | None = None
        while acks and acks[0][0] <= high_watermark:
            _, owner, request_id, base_sequence, append_time_ms, duplicate, size, arrived_s = acks.popleft()
            if owner is not link:
                link = owner
                put_ok = owner.wire.writer.put_ok
                add(owner)
            put_ok(request_id, base_sequence, append_time_ms, epoch, duplicate, replicas, synced)
            owner.unacknowledged_bytes -= size
            if arrived_s == last_arrived:
                same += 1
            else:
                self.counters.puts_took(now_s - last_arrived, same)
                last_arrived, same = arrived_s, 1
        self.counters.puts_took(now_s - last_arrived, same)
        return links

    def _finish_local(self, high_watermark: int) -> None:
        waiting, self._local = self._local or [], None
        for end, done in waiting:
            if end > high_watermark:
                self._local = [*(self._local or ()), (end, done)]
            elif not done.done():
                done.set_result(None)

    def fail(self, error: StreamkitError) -> set[Link]:
        """Nothing that waits can be made safe any more."""
        links: set[Link] = set()
        acks, self._acks = self._acks or deque(), None
        for _, link, request_id, _, _, _, size, _ in acks:
            link.unacknowledged_bytes -= size
            link.refuse(request_id, "put", error)
            self.counters.put_failures[error.code] += 1
            links.add(link)
        waiting, self._local = self._local or [], None
        for _, done in waiting:
            if not done.done():
                done.set_exception(error)
        if self._watchers:
            watchers, self._watchers = self._watchers, None
            for wake in watchers.values():
                wake()
        return links

    @property
    def is_established(self) -> bool:
        """Everything that older leaders acknowledged is below the high watermark."""
        start = self._leader.epoch_start
        return start is None or self.high_watermark > start

    @property
    def is_readable(self) -> bool:
        """It knows of everything that its predecessors let be read; until then it must not tell less."""
        start = self._leader.epoch_start
        return start is None or self.high_watermark >= start

    @property
    def waiting(self) -> int:
        """Puts that are not answered yet."""
        return len(self._acks or ()) + len(self._local or ())

    # -- readers -------------------------------------------------------------------------------------------

    def handed_out(self, application: str, records: int, size_bytes: int) -> None:
        """For the metrics."""
        if self.reads is None:
            self.reads = {}
        counts = self.reads.setdefault(application, [0, 0])
        counts[0] += records
        counts[1] += size_bytes

    def watch(self, key: object, wake: Callable[[], None]) -> None:
        """Call `wake` once, when the high watermark moves next."""
        if self._watchers is None:
            self._watchers = {}
        self._watchers[key] = wake

    def unwatch(self, key: object) -> None:
        if self._watchers:
            self._watchers.pop(key, None)
