"""One shard's log on its way to one follower.

    PROBING ──accepted──▶ STREAMING          a probe is a section without batches: does your log match mine here?
       ▲  ◀──mismatch────────┘               streaming runs ahead of the acknowledgements, which are cumulative
       │
       └──▶ RESTING                          the follower cannot take it now (unknown shard, full disk, newer epoch):
                                             asked again after a while

Whether a section fits is judged by the follower alone, each time; a Feed that is mistaken costs a round trip, never
a record. It holds no bytes: only how far it has sent, and the size of what is on its way. Called by `peer_feeds`,
which has one window, one frame a turn and one timer for all feeds of a node. Read `Feed.emit` first.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol

from streamkit.errors import SequenceTrimmed, StreamkitError
from streamkit.model.stream import Durability
from streamkit.protocol.frames import Acknowledgement, FrameWriter
from streamkit.protocol.peers import ACCEPTED, MISMATCH, NOT_STARTED, STALE

if TYPE_CHECKING:
    from streamkit.broker.peer_feeds import PeerFeeds

logger = logging.getLogger("streamkit.broker")

PROBE_BYTES = 72
_LEVELS = {Durability.FSYNC: 0, Durability.OS: 1, Durability.LEADER: 2}
_REST_SECONDS_MAX = 4.0
_IN_VAIN_MAX = 8


class FedLog(Protocol):
    """What a feed reads: storage.ShardLog."""

    @property
    def log_start(self) -> int: ...
    @property
    def log_end(self) -> int: ...
    @property
    def tail_start(self) -> int: ...
    @property
    def epochs(self) -> list[tuple[int, int]]: ...
    @property
    def stored_bytes(self) -> int: ...

    def read(self, start: int, limit: int, bytes_max: int) -> list[Any] | None: ...
    async def read_cold(self, start: int, limit: int, bytes_max: int) -> list[Any]: ...


class Leading(Protocol):
    """What a feed needs of the leader of a shard.

    A feed belongs to the epoch that the leader had when the feed was made, and sends nothing in any other; who steps
    down closes it.
    """

    @property
    def uuid(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...
    @property
    def durability(self) -> Durability: ...
    @property
    def log(self) -> FedLog: ...
    @property
    def high_watermark(self) -> int: ...
    @property
    def epoch_start(self) -> int | None:
        """Where this epoch begins in the log; None: nothing of it was appended yet."""

    def on_acknowledged(self, node: str, incarnation: bytes, epoch: int, verdict: int, end: int) -> None:
        """verdict: protocol.peers.ACCEPTED … REFUSED. end: for ACCEPTED never beyond what was sent and matched."""

    def on_feed_broken(self, node: str) -> None:
        """The log cannot be read where that node needs it (damage). Tried again later, less and less often."""


class State(Enum):
    PROBING = auto()
    STREAMING = auto()
    RESTING = auto()


class Feed:
    """Made by Peers.feed(). `ready` is called for each append and each move of the high watermark.

    matched: one past the last record that the follower said, on this link, to hold at the level asked for, or None.
    written: the same, written but not necessarily synced; None when the link speaks protocol 1, or nothing was said.
    """

    __slots__ = (
        "_aligned", "_flight", "_in_vain", "_lane", "_level", "_next", "_queued", "_rest_seconds", "_told", "asked_s",
        "closed", "epoch", "flight_bytes", "leader", "matched", "node", "state", "written",
    )  # fmt: skip

    def __init__(self, leader: Leading, node: str, lane: PeerFeeds) -> None:
        self.leader = leader
        self.epoch = leader.epoch
        self.node = node
        self.matched: int | None = None
        self.written: int | None = None
        self.closed = False
        self.state = State.PROBING
        self.flight_bytes = 0
        self.asked_s: float | None = None          # when the probe left that has no answer yet
        self._lane = lane
        self._level = _LEVELS[leader.durability]
        self._flight: deque[tuple[int, int]] = deque()     # (end, bytes) of sections without an answer
        self._next = leader.log.log_end            # the first sequence not sent
        self._aligned = False                      # a batch is known to begin at `_next`
        self._told = 0                             # the high watermark that was sent last
        self._queued = True                        # waits for its turn, or must not ask for one
        self._in_vain = 0                          # probes in a row that led nowhere lower
        self._rest_seconds = 0.0

    # -- for the leader ------------------------------------------------------------------------------------

    def ready(self) -> None:
        """There is something to send. Cheap: most calls find the feed waiting for its turn already."""
        if not self._queued:
            self._queued = True
            self._lane.enqueue(self)

    def close(self) -> None:
        """Nothing is sent or reported any more."""
        if not self.closed:
            self.closed = self._queued = True
            self._release(None)
            self._lane.forget(self)

    @property
    def sent(self) -> int:
        """One past the last record sent on this link."""
        return self._next

    @property
    def lag_bytes(self) -> int:
        """Roughly what the follower lacks; all of the log when it has not said anything."""
        log = self.leader.log
        held = log.log_end - log.log_start
        missing = min(log.log_end - (log.log_start if self.matched is None else self.matched), held)
        return log.stored_bytes * missing // held if missing > 0 else 0

    # -- for the lane: sending -------------------------------------------------------------------------------

    def restart(self) -> None:
        """A new link: nothing of what the old one carried is known to have arrived."""
        self._drop_flight()
        self.matched = self.written = None
        self._in_vain, self._rest_seconds = 0, 0.0
        self._probe_from(self.leader.log.log_end)
        self._queued = False
        self.ready()

    def suspend(self) -> None:
        """The link is gone."""
        self._drop_flight()
        self._queued = True

    def dequeued(self) -> None:
        self._queued = False

    def emit(self, writer: FrameWriter, bytes_max: int) -> int:
        """Write what may be sent now as one section; its size, 0 when there is nothing or it must wait."""
        if self.leader.epoch != self.epoch:
            return 0                               # it leads no more, or again: this feed is about to be closed
        if self.state is State.STREAMING:
            log = self.leader.log
            if self._next < log.log_end:
                return self._emit_batches(writer, bytes_max)
            if self.leader.high_watermark > self._told:
                self._lane.gather_news(self)
            return 0
        if self.state is State.PROBING and self.asked_s is None:
            self.asked_s = self._lane.now_s()
            self._lane.watch(self)
            self._section(writer, [])
            return PROBE_BYTES
        return 0

    def _emit_batches(self, writer: FrameWriter, bytes_max: int) -> int:
        log, lane = self.leader.log, self._lane
        if self.flight_bytes >= lane.feed_window_bytes:
            return 0                               # the next acknowledgement gives it a turn
        if self._next < log.tail_start:
            lane.fall_behind(self)
            return 0
        try:
            batches = log.read(self._next, log.log_end, bytes_max)
        except (StreamkitError, OSError) as error:
            self.unreadable(error)
            return 0
        if batches is None:
            lane.fall_behind(self)
            return 0
        size = self._section(writer, batches)
        if self._next < log.log_end:
            self.ready()
        return size

    def emit_news(self, writer: FrameWriter) -> int:
        """The high watermark alone, when no batches carried it meanwhile."""
        if self.closed or self.state is not State.STREAMING or self.leader.epoch != self.epoch:
            return 0
        if self._told >= self.leader.high_watermark:
            return 0
        self._section(writer, [])
        return PROBE_BYTES

    def behind(self) -> int | None:
        """Where to read on disk what it sends next; None when it need not, or must not now."""
        if self.closed or self.state is not State.STREAMING or self.leader.epoch != self.epoch:
            return None
        return self._next if self._next < self.leader.log.tail_start else None

    def emit_cold(self, writer: FrameWriter, start: int, batches: list[Any]) -> int:
        """What was read for `behind()`, unless the feed has moved meanwhile."""
        if not batches or self.behind() != start:
            return 0
        return self._section(writer, batches)

    def _section(self, writer: FrameWriter, batches: list[Any]) -> int:
        leader = self.leader
        log = leader.log
        start = self._next
        if batches and not self._aligned:
            # A hint may fall inside a batch of ours: the section says where the batch really begins.
            start = int.from_bytes(batches[0][8:16], "little")
            self._aligned = True
        epoch_start = leader.epoch_start
        if epoch_start is None:
            epoch_start = NOT_STARTED
        previous_epoch = self.epoch if start > epoch_start else self._epoch_before(start)
        self._told = leader.high_watermark
        self._next, size = writer.section(
            leader.uuid, self.epoch, self._level, start, previous_epoch, self._told, log.log_start, log.log_end,
            epoch_start, batches,
        )  # fmt: skip
        if size:
            self._flight.append((self._next, size))
            self.flight_bytes += size
            self._lane.flight_bytes += size
        return size + PROBE_BYTES

    def _epoch_before(self, start: int) -> int:
        log = self.leader.log
        if start <= log.log_start:
            return 0
        epochs = log.epochs
        place = bisect_right(epochs, start - 1, key=_epoch_begins)
        return epochs[place - 1][0] if place else 0

    # -- for the lane: answers -------------------------------------------------------------------------------

    def acknowledged(self, answer: Acknowledgement) -> None:
        leader = self.leader
        verdict = answer.verdict
        if verdict == STALE:
            if answer.epoch > self.epoch:
                self._rest()
                leader.on_acknowledged(self.node, answer.incarnation, answer.epoch, verdict, answer.end)
        elif answer.epoch != self.epoch:
            return                                 # said to an earlier leadership of this node
        elif verdict == ACCEPTED:
            self._accepted(answer)
        elif verdict == MISMATCH:
            self._mismatched(answer.end)
            leader.on_acknowledged(self.node, answer.incarnation, answer.epoch, verdict, answer.end)
        else:
            self._rest()
            leader.on_acknowledged(self.node, answer.incarnation, answer.epoch, verdict, answer.end)

    def _accepted(self, answer: Acknowledgement) -> None:
        # What lies beyond what was sent has not been compared: it does not count, whatever the follower says.
        end = min(answer.end, self._next)
        if self.matched is None or end > self.matched:
            self.matched = end
            self._rest_seconds = 0.0
        if answer.written and (self.written is None or answer.written > self.written):
            self.written = min(max(answer.written, end), self._next)
        self._release(end)
        if self.state is State.PROBING and self.asked_s is not None:
            self.state, self.asked_s, self._in_vain = State.STREAMING, None, 0
            self._lane.unwatch(self)
        if self._next < self.leader.log.log_end or self._told < self.leader.high_watermark:
            self.ready()                           # of a move while it probed nothing was sent, and it may be the last
        self.leader.on_acknowledged(self.node, answer.incarnation, answer.epoch, ACCEPTED, end)

    def _mismatched(self, hint: int) -> None:
        """Ask again at `hint`, usually lower. The same place again is no mistake: it may have cut its log meanwhile."""
        if self.state is State.RESTING or (self.state is State.PROBING and self.asked_s is None):
            return                                 # an answer to what was sent before
        log = self.leader.log
        place = max(min(hint, log.log_end), log.log_start)
        if place >= self._next:
            self._in_vain += 1
            if self._in_vain > _IN_VAIN_MAX:
                self._rest()
                return
        self._release(None)
        self._probe_from(place)
        self.ready()

    def _probe_from(self, sequence: int) -> None:
        self._lane.unwatch(self)
        self.state, self.asked_s = State.PROBING, None
        self._next = sequence
        self._aligned = False

    def _rest(self) -> None:
        self._release(None)
        self.state, self.asked_s = State.RESTING, self._lane.now_s()
        self._rest_seconds = min(self._rest_seconds * 2 or self._lane.rest_seconds, _REST_SECONDS_MAX)
        self._lane.watch(self)

    def look_again(self, now_s: float) -> None:
        """Called now and then while it rests or waits for the answer to a probe."""
        if self.asked_s is None or now_s - self.asked_s < max(self._rest_seconds, self._lane.rest_seconds):
            return
        self._probe_from(self.leader.log.log_end)
        self.ready()

    def unreadable(self, error: BaseException) -> None:
        """The log does not give out what comes next."""
        log = self.leader.log
        if isinstance(error, SequenceTrimmed) or self._next < log.log_start:
            self._release(None)
            self._probe_from(log.log_start)        # retention was faster than the follower
            self.ready()
            return
        facts = {"shard": self.leader.uuid.hex(), "node": self.node, "sequence": self._next, "error": str(error)}
        logger.error("feed.unreadable", extra={"facts": facts})
        self._rest()
        self.leader.on_feed_broken(self.node)

    # -- what is on its way ----------------------------------------------------------------------------------

    def _release(self, end: int | None) -> None:
        # Everything up to `end`, or all of it: it will not be answered.
        flight, size = self._flight, 0
        while flight and (end is None or flight[0][0] <= end):
            size += flight.popleft()[1]
        if size:
            self.flight_bytes -= size
            self._lane.release(size)

    def _drop_flight(self) -> None:
        # With the link goes its count of them all.
        self._flight.clear()
        self.flight_bytes = 0


def _epoch_begins(entry: tuple[int, int]) -> int:
    return entry[1]
