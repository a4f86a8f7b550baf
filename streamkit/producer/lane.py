"""One shard's batches on their way, in order: the window of a Sender.

    sealed ──▶ window (numbered, oldest first) ──▶ in flight, at most in_flight_max ──▶ stored

A refusal or a lost connection stops the lane: nothing new is sent until everything in flight has been answered, then
what is left is sent again, oldest first. The broker orders by sequence, so that repeats and overtaking are harmless.
A batch that failed for certain leaves a hole in the numbering: the ones behind it are renumbered. One that is to end
while it is in doubt, because its time is over, is cancelled by its numbers: the shard says that it is stored, or from
then on that it never will be, and the ones behind it go on as they are:

    in doubt ──time over──▶ cancelling ──answer──▶ stored, or not stored
                                │ no answer until cancel_until_ms: whoever waits is told "unknown", with a token
                                ▼
                             given up: still cancelled before anything behind it is sent

Only a shard that lost or forgot numbers of the producer gets a new identity.

A shard that was split or merged refuses for good. Then only batches in doubt are sent again, until each is stored or
refused; what is left is taken apart and put in front of the children's records, which wait until then:

    open ──ShardClosed, or the map says so──▶ winding up ──nothing in doubt──▶ finished, children go on
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from streamkit._core.accumulator import SealedBatch
from streamkit.errors import (
    Cancelled,
    Closed,
    NotFound,
    OutcomeUnknown,
    ProducerFenced,
    SequenceGap,
    ShardClosed,
    ShardNotFound,
    StreamkitError,
    Throttled,
    TimedOut,
    UnknownProducer,
)
from streamkit.model.fate import BatchName, PutToken
from streamkit.model.shard import Shard
from streamkit.producer.config import ProducerConfig
from streamkit.producer.figures import Attempt
from streamkit.producer.pace import Window
from streamkit.producer.verdict import REFRESHES_MAX, Verdict, is_in_doubt, is_passing, judge
from streamkit.protocol.messages import ProducerGiven
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Clock

_ENDS = (NotFound, ProducerFenced, Closed)     # nobody is left who could be asked to cancel
_KNOWN_MS = 45 * 60 * 1000                     # below the hour for which a shard remembers a producer at least

TRIES_KEPT = 100                           # newest ones, of each batch


@dataclass(slots=True, eq=False)
class Flight:
    """One batch of a lane."""

    batch: SealedBatch
    deadline_ms: int
    in_flight: bool = False
    in_doubt: bool = False                 # some copy of it may have been, or may yet be, stored
    sent_ms: int | None = None             # when it was sent first, monotonic
    cancel_until_ms: int | None = None     # it is being cancelled; who waits is told "unknown" then
    reason: StreamkitError | None = None   # why, if not because its time is over
    withdrawn: bool = False                # whoever put its records wants none of them stored
    attempts: int = 0
    error: StreamkitError | None = None    # of the last try
    opened_s: float = 0.0                  # event loop time
    sent_s: float = 0.0                    # of the last try
    ended_s: float = 0.0                   # of the last try; before the first, when the batch was opened
    tries: tuple[Attempt, ...] = ()
    flushes: list[Flush] = field(default_factory=list)

    @property
    def given_up(self) -> bool:
        """Its outcome was told to be unknown; only its numbers are still to be settled."""
        return self.batch.settled

    @property
    def due_ms(self) -> int | None:
        """When something is to be decided about it at the latest."""
        if self.cancel_until_ms is None:
            return self.deadline_ms
        return None if self.given_up else self.cancel_until_ms


    def answered(self, now_s: float, error: StreamkitError | None) -> None:
        """The try has ended."""
        self.tries = (*self.tries[-(TRIES_KEPT - 1):], Attempt(self.sent_s - self.ended_s, now_s - self.sent_s, error))
        self.ended_s = now_s


@dataclass(slots=True)
class Flush:
    """Somebody waits for all of `left`."""

    left: int
    done: asyncio.Future[None]

    def one_settled(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.done.done() and not self.done.get_loop().is_closed():
            self.done.set_result(None)


@dataclass(slots=True)
class Moved:
    """A batch in the accumulator that holds records of a closed shard: their age, and who waits for them."""

    since_ms: int
    flushes: list[Flush]


@dataclass(slots=True)
class Plan:
    """What a stopped lane does next, in field order."""

    fail: list[tuple[Flight, StreamkitError]]
    unknown: list[tuple[Flight, StreamkitError]] = field(default_factory=list)    # told now, still to be cancelled
    cancelled: list[tuple[Flight, StreamkitError]] = field(default_factory=list)  # ended, their numbers are used up
    rename: bool = False                   # a new identity, numbering from 0
    renumber: bool = False                 # close the holes that definite failures left
    refresh: bool = False                  # ask again where the shard is
    follow: bool = False                   # the refusals named the leader: go there at once
    ask: bool = False                      # a batch is to be cancelled: ask at once


class Lane:
    """State of one shard in a Sender; the Sender does the talking."""

    def __init__(
        self, index: int, stream: str, shard: Shard, identity: ProducerGiven, backoff: Backoff, clock: Clock,
        config: ProducerConfig, pace: Window,
    ) -> None:  # fmt: skip
        delivery_timeout_ms = config.delivery_timeout_ms
        fail_if_throttled = config.fail_if_throttled
        self.index = index
        self.stream = stream
        self.cancel_timeout_ms = config.request_timeout_ms
        self.clock = clock
        self.ending = ""                   # the producer is being closed: why what is left ends
        self.delivery_timeout_ms = delivery_timeout_ms
        self.pace = pace
        self.fail_if_throttled = fail_if_throttled
        self.shard = shard
        self.identity = identity
        self.backoff = backoff
        self.window: deque[Flight] = deque()
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.next_sequence = 0
        self.stored_end = 0                # one past the last record that was acknowledged, in the shard's sequences
        self.stopped = False
        self.overdue = False               # the open batch has waited linger_ms
        self.waiting_since_ms: int | None = None   # when the open batch was first seen; None: none was
        self.opened_s = 0.0                # the same, as event loop time
        self.refreshes = 0
        self.listed = False                # the last look at the stream found the shard
        self.lost = False                  # the last refusal said that the shard is elsewhere
        self.follows = 0                   # times that a named leader was followed since something was stored
        self.told_closed = False           # the shard said that it takes nothing any more
        self.closed = shard.closed_ms is not None    # the map says so, and who the children are
        self.moving = False                # its records are being given to the children
        self.tainted = False               # a batch failed in doubt while all was halted: its number is spent
        self.renaming = False              # another identity is being asked for: nothing else touches the lane
        self.opened = True                 # False: elder instances of the producer's name may still be stored here
        self.finished = False              # closed, and nothing is left of it here
        self.tried = _place(shard)         # where the last batch was sent
        self.parents: list[Lane] = []      # closed, with records that come before ours
        self.moved: deque[Moved] = deque()   # the oldest batches that wait in the accumulator, if shards were closed
        self.refusal: StreamkitError | None = None   # the last one since something was stored: why all wait
        self.linger_timer: asyncio.TimerHandle | None = None
        self.retry_timer: asyncio.TimerHandle | None = None

    @property
    def winding_up(self) -> bool:
        """Nothing new is sent to the shard."""
        return self.closed or self.told_closed

    @property
    def wants_look(self) -> bool:
        """Something waits here for what a look at the stream may tell."""
        return bool(self.window) or (self.told_closed and not self.closed)

    @property
    def moved_on(self) -> bool:
        """The shard is served elsewhere than where the last batch was sent."""
        return _place(self.shard) != self.tried

    def oldest_ms(self, now_ms: int) -> int:
        """Age of the oldest batch, sealed or open; 0 when there is none."""
        if self.window:
            return max(0, now_ms - self.window[0].deadline_ms + self.delivery_timeout_ms)
        return 0 if self.waiting_since_ms is None else now_ms - self.waiting_since_ms

    def sending(self) -> None:
        """A batch leaves now."""
        self.tried = _place(self.shard)

    def leaves(self, flight: Flight, size_bytes: int, now_s: float) -> None:
        """A batch is on its way."""
        flight.in_flight = True
        flight.attempts += 1
        flight.sent_s = now_s
        if flight.sent_ms is None:
            flight.sent_ms = self.clock.monotonic_ms()
        self.in_flight += 1
        self.in_flight_bytes += size_bytes

    def returns(self, flight: Flight, size_bytes: int, now_s: float, error: StreamkitError | None) -> None:
        """Its answer is here."""
        if isinstance(error, Throttled) and not self.stopped:
            self.pace.throttled(self.in_flight_bytes)
        flight.in_flight = False
        flight.answered(now_s, error)
        self.in_flight -= 1
        self.in_flight_bytes -= size_bytes
        if error is None:
            self.pace.acknowledged(size_bytes)

    def went_well(self) -> None:
        """The shard settled a batch."""
        self.refreshes = self.follows = 0
        self.lost = False
        self.refusal = None
        self.backoff.reset()

    def admit(self, batch: SealedBatch, now_ms: int) -> Flight:
        """The time-out counts from when the batch was opened; what is behind it was put after the last look."""
        if self.moved:
            moved = self.moved.popleft()
            flight = Flight(batch, moved.since_ms + self.delivery_timeout_ms, flushes=list(moved.flushes))
        else:
            since_ms, self.waiting_since_ms = self.waiting_since_ms, now_ms
            flight = Flight(batch, (now_ms if since_ms is None else since_ms) + self.delivery_timeout_ms)
        self.window.append(flight)
        self.next_sequence += batch.count
        return flight

    def loose(self) -> list[Flight]:
        """The newest batches, oldest first, that nobody can have stored: their numbers are free."""
        found: list[Flight] = []
        for flight in reversed(self.window):
            if flight.in_flight or flight.in_doubt or flight.cancel_until_ms is not None:
                break
            found.insert(0, flight)
        return found

    def remove(self, flight: Flight) -> None:
        if self.window and self.window[0] is flight:
            self.window.popleft()
        else:
            self.window.remove(flight)

    def refused(self, flight: Flight, error: StreamkitError) -> None:
        """The flight was answered with `error`: the lane stops."""
        flight.error = error
        if not isinstance(error, SequenceGap):     # it follows from another's refusal
            self.refusal = error
        self.told_closed = self.told_closed or isinstance(error, ShardClosed)
        if self.told_closed and isinstance(error, ShardClosed | SequenceGap):
            flight.in_doubt = False        # a closed shard that does not have it will never have it
        else:
            flight.in_doubt = flight.in_doubt or is_in_doubt(error)
        self.stopped = True

    def plan(self, now_ms: int) -> Plan:
        """Everything has been answered: who fails, and how the rest goes on."""
        assert self.in_flight == 0, "a lane is planned when nothing is in flight"
        plan = Plan([])
        if self.winding_up:
            self.forget_given_up()
            self._end_doubt()
        refreshing = hole = False
        doubtful: list[Flight] = []        # whose fate is open, with no hole before them
        for flight in self.window:
            error, flight.error = flight.error, None           # each answer counts once
            if isinstance(error, Cancelled):                   # somebody resolved its token, or that of a later one
                plan.cancelled.append((flight, error))
                continue
            verdict = Verdict.RETRY if error is None else self._judge(flight, error)
            if verdict is Verdict.REFRESH and self.refreshes >= REFRESHES_MAX and not self._is_passing(error):
                verdict = Verdict.FAIL
            refreshing = refreshing or verdict is Verdict.REFRESH
            plan.follow = plan.follow or _names_leader(error)
            # Behind a hole no copy can ever be stored under the old number, so doubt ends there.
            doubt = flight.in_doubt and not hole
            if verdict is Verdict.RENAME:
                plan.rename = True
                if doubt:                  # an earlier try may lie in what the shard forgot
                    verdict, error = Verdict.FAIL, self.unknown(flight, error)
            elif doubt and self.identity.producer_id:
                if verdict is Verdict.FAIL and (flight.cancel_until_ms is not None or isinstance(error, _ENDS)):
                    error = self.ended(flight, error) if isinstance(error, _ENDS) else self.unknown(flight, error)
                else:
                    verdict = self._cancel(flight, error, verdict, now_ms, plan)
            elif verdict is not Verdict.FAIL and now_ms >= flight.deadline_ms:
                verdict, error = Verdict.FAIL, self.timed_out(flight, error, in_doubt=doubt)
            if verdict is Verdict.FAIL:
                assert error is not None, "a flight fails for a reason"
                plan.fail.append((flight, error))
                plan.rename = plan.rename or (flight.in_doubt and not isinstance(error, ProducerFenced))
                hole = hole or not flight.in_doubt
            elif flight.in_doubt:
                # The number itself must not be given to another batch while copies may be under way.
                plan.rename = plan.rename or hole
                if not hole:
                    doubtful.append(flight)
        plan.rename = plan.rename or self.tainted
        if self.winding_up:                # no number will be given here any more
            plan.rename = False
        plan.renumber = bool(plan.fail) and not self.winding_up
        plan.refresh = self.lost = refreshing
        self.refreshes = self.refreshes + 1 if refreshing else 0
        if self.winding_up:                # nor is one that is still open in anybody's way
            plan.fail += plan.unknown
            plan.unknown = []
        if plan.rename:
            plan.fail += [(flight, self.unknown(flight, None)) for flight in doubtful]
            plan.unknown = []
            ending = {id(flight) for flight, _ in plan.fail}
            for flight in self.window:
                flight.in_doubt = flight.in_doubt and id(flight) in ending
        return plan

    def weigh_holes(self, plan: Plan) -> None:
        """More of the window fails for certain than plan() found: doubt behind that wants another identity, as there.

        Its numbers would be given to others while copies of it may be under way. Doubt before it is not settled then.
        """
        hole = min((flight.batch.sequence for flight, _ in plan.fail if not flight.in_doubt), default=None)
        if hole is None or self.winding_up or not self.identity.producer_id:
            return
        ending = {id(flight) for flight, _ in (*plan.fail, *plan.cancelled)}
        doubtful = [flight for flight in self.window if flight.in_doubt and id(flight) not in ending]
        if any(flight.batch.sequence > hole for flight in doubtful):
            plan.rename = True
            for flight in doubtful:
                if flight.batch.sequence < hole:
                    plan.fail.append((flight, self.unknown(flight, None)))
                else:
                    flight.in_doubt = False

    def renumber(self, sequence: int) -> None:
        """Number the window without holes, from `sequence`, under the present identity."""
        for flight in self.window:
            flight.batch.renumber(self.identity.producer_id, self.identity.producer_epoch, sequence)
            flight.in_doubt = False
            flight.sent_ms = flight.cancel_until_ms = flight.reason = None
            sequence += flight.batch.count
        self.next_sequence = sequence

    def close_holes(self, first: int) -> None:
        """The batch numbered `first`, and maybe later ones, failed for certain: number those behind it anew."""
        sequence = first
        for flight in self.window:
            if flight.batch.sequence > first:
                flight.batch.renumber(self.identity.producer_id, self.identity.producer_epoch, sequence)
                sequence += flight.batch.count
        self.next_sequence = sequence

    def rename(self, identity: ProducerGiven, sequence: int = 0) -> None:
        self.forget_given_up()             # nobody will use those numbers again
        self.tainted = False
        self.identity = identity
        self.renumber(sequence)

    @property
    def held(self) -> bool:
        """Nothing may be sent yet, whatever waits here."""
        return bool(self.parents) or not self.opened

    def _end_doubt(self) -> None:
        # Numbers are stored in order: behind a batch that a closed shard will never store none is stored either.
        refused = False
        for flight in self.window:
            refused = refused or not flight.in_doubt
            flight.in_doubt = not refused

    def _is_passing(self, error: StreamkitError | None) -> bool:
        # A node that learns of a new stream last refuses its first batches; others list the shard meanwhile.
        return is_passing(error) or (isinstance(error, ShardNotFound) and self.listed)

    def _judge(self, flight: Flight, error: StreamkitError) -> Verdict:
        oldest = self.window[0].batch.sequence
        if isinstance(error, UnknownProducer) and oldest == 0 and flight.cancel_until_ms is None:
            return Verdict.RETRY           # a gap like any other: the shard has not seen our first batch yet
        if isinstance(error, SequenceGap):
            expected = error.facts.get("expected", oldest)
            if flight is self.window[0] and expected < oldest:
                return Verdict.RENAME      # the shard lost batches that it had acknowledged
        if self.fail_if_throttled and isinstance(error, Throttled):
            return Verdict.FAIL
        return judge(error)

    def _cancel(
        self, flight: Flight, error: StreamkitError | None, verdict: Verdict, now_ms: int, plan: Plan
    ) -> Verdict:
        """A flight in doubt that may have to end: begin to cancel it, go on with that, or say that nobody knows."""
        known_ms = now_ms - (now_ms if flight.sent_ms is None else flight.sent_ms)
        # The shard knows a producer for so long after its last batch; then the first one would be taken for new.
        expired = flight.batch.sequence == 0 and known_ms > _KNOWN_MS
        if flight.cancel_until_ms is not None:
            if now_ms >= flight.cancel_until_ms and not flight.given_up:
                plan.unknown.append((flight, self.unknown(flight, error)))
        elif verdict is Verdict.FAIL or now_ms >= flight.deadline_ms or expired:
            plan.ask = True
            self.begin_to_cancel(flight, error if verdict is Verdict.FAIL else None, now_ms)
        return Verdict.RETRY

    def begin_to_cancel(self, flight: Flight, reason: StreamkitError | None, now_ms: int) -> None:
        """It is in doubt and has to end. reason: why, if not for want of time."""
        flight.reason = reason
        begun_ms = min(now_ms, flight.deadline_ms)             # what waited for others gets one try at least
        flight.cancel_until_ms = max(begun_ms + self.cancel_timeout_ms, now_ms + min(1_000, self.cancel_timeout_ms))

    def forget_given_up(self) -> None:
        """No number will be given here any more, so open ones are in nobody's way."""
        for flight in [flight for flight in self.window if flight.given_up]:
            self.window.remove(flight)

    def name_of(self, flight: Flight) -> BatchName:
        return BatchName(
            self.identity.producer_id, self.identity.producer_epoch, flight.batch.sequence, flight.batch.count
        )

    def age_ms(self, flight: Flight) -> int:
        """How long ago it was sent first."""
        now_ms = self.clock.monotonic_ms()
        return now_ms - (now_ms if flight.sent_ms is None else flight.sent_ms)

    def token(self, flight: Flight) -> str:
        """For resolve(); "" without idempotence."""
        if not self.identity.producer_id:
            return ""
        sent_ms = max(0, self.clock.now_ms() - self.age_ms(flight))
        return PutToken(self.stream, self.shard.uuid, self.name_of(flight), sent_ms).text()

    def unknown(self, flight: Flight, cause: StreamkitError | None) -> StreamkitError:
        """Nobody could be asked what became of it, or nobody knows."""
        cause = cause or flight.reason or self.refusal
        reason = f": {cause}" if cause is not None else ""
        if self.ending:
            return Closed(f"{self.ending} before {self.shard.id} acknowledged the record{reason}",
                          try_="resolve its token", what="producer", sent=True, token=self.token(flight))  # fmt: skip
        return OutcomeUnknown(
            f"whether {flight.batch.count} records for {self.shard.id} are stored is not known{reason}",
            try_="resolve the token when the broker can be reached", sent=True, token=self.token(flight),
            timeout_ms=self.delivery_timeout_ms, shard=self.shard.id, attempts=flight.attempts,
        )  # fmt: skip

    def ended(self, flight: Flight, error: StreamkitError) -> StreamkitError:
        """The refusal that ends a batch of which an earlier try may be stored; it says so.

        Whoever answered told it of the last try alone, and of others that it does not know.
        """
        told = type(error)(str(error), try_=error.try_, **error.facts)
        told.facts |= {"sent": True, "token": self.token(flight)}
        told.__cause__ = error             # which says nothing of this batch, and is told to others
        return told

    def may_be_stored(self, flight: Flight, cause: StreamkitError | None) -> StreamkitError:
        """It ends in doubt, asked or not."""
        known = self.identity.producer_id
        return self.unknown(flight, cause) if known else self.timed_out(flight, cause, in_doubt=True)

    def not_stored(self, flight: Flight) -> StreamkitError:
        """It was cancelled: why."""
        if flight.reason is not None:
            return flight.reason
        error = self.timed_out(flight, None, in_doubt=False)
        error.facts["cancelled"] = True
        return error

    def timed_out(self, flight: Flight, cause: StreamkitError | None, *, in_doubt: bool = False) -> StreamkitError:
        """It ends for want of time; in_doubt: without idempotence, when nobody can be asked."""
        cause = cause or self.refusal
        reason = f": {cause}" if cause is not None else ""
        try_ = "they may be stored; put them again only if a repeat is harmless" if in_doubt else (
            "put them again; they were not stored")  # fmt: skip
        if self.ending:
            return Closed(f"{self.ending} before {self.shard.id} acknowledged the record{reason}",
                          try_=try_, what="producer", sent=in_doubt)  # fmt: skip
        return TimedOut(
            f"{flight.batch.count} records for {self.shard.id} were not acknowledged in time{reason}",
            try_=try_,
            sent=in_doubt,
            timeout_ms=self.delivery_timeout_ms,
            shard=self.shard.id,
            attempts=flight.attempts,
        )


def _place(shard: Shard) -> tuple[str, str, int]:
    return shard.address, shard.leader, shard.epoch


def _names_leader(error: StreamkitError | None) -> bool:
    return error is not None and error.code == "not_leader" and bool(error.facts.get("address"))


def answer_as_error(answer: Any) -> StreamkitError | None:
    """The error that an answer stands for, or None for a receipt."""
    return answer if isinstance(answer, StreamkitError) else None
