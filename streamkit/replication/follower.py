"""A copy of a shard: what it promises, takes in and answers, whoever leads.

    offered, older epoch      ▸ STALE
    offered, newer epoch      ▸ promise it durably ▸ MISMATCH, "send from my end"
    offered, does not join on ▸ MISMATCH with where to try
    offered, differs          ▸ cut our log there ▸ MISMATCH
    offered, joins on         ▸ append ▸ on disk ▸ ACCEPTED up to what is known to be the leader's
    asked to seal             ▸ promise it durably ▸ tell what we hold

While a promise or a cut is on its way to the disk, offers are dropped: the MISMATCH that follows asks for them
again. An answer never vouches for records that lie in our log but were not compared with the leader's in this
epoch. Source: docs/decisions/0061.
"""

from __future__ import annotations

from typing import Protocol

from streamkit.replication.agreement import Epochs, epoch_at, run_start
from streamkit.replication.effects import ACCEPT, HEAR, NOTHING, Answer, Effects, Verdict
from streamkit.replication.events import Appended, Flushed, Offered, Promised, SealAsked, Truncated


class LogView(Protocol):
    """What the rules read of a log; changing it is the owner's work."""

    @property
    def log_start(self) -> int: ...
    @property
    def log_end(self) -> int: ...
    @property
    def epochs(self) -> Epochs: ...


class Follower:
    """promised: nothing older is taken. certain: this copy may vote.

    high_watermark: what this copy knows to be committed. matched: our log is the leader's up to here, in the
    promised epoch. whole: nothing in our log is damaged; a damaged copy does not vote. cutting: a cut is under way;
    durable_promise: the promise that is on disk.
    """

    __slots__ = (
        "_answered", "_sealing", "_vote_end", "certain", "cutting", "durable_promise", "high_watermark",
        "log", "matched", "promised", "whole",
    )  # fmt: skip

    def __init__(self, log: LogView, *, promised: int, certain: bool, high_watermark: int = 0) -> None:
        self.log = log
        self.promised = self.durable_promise = promised
        self.certain = certain
        self.high_watermark = max(high_watermark, log.log_start)
        self.matched = 0
        self.cutting = False
        self.whole = True
        self._answered = 0                         # the last end that was vouched for in this epoch
        self._vote_end: int | None = None          # an uncertain copy votes again once it holds the leader's log so far
        self._sealing = False

    def step(self, event: Offered | Appended | Truncated | Flushed | SealAsked | Promised) -> Effects:
        if isinstance(event, Offered):
            return self._offered(event)
        if isinstance(event, Flushed):
            return self._flushed(event)
        if isinstance(event, Appended):
            self.matched = max(self.matched, event.end)
            return NOTHING
        if isinstance(event, SealAsked):
            return self._seal_asked(event.epoch)
        if isinstance(event, Promised):
            return self._promised_durably(event.epoch)
        self.cutting = False
        self.high_watermark = max(self.high_watermark, self.log.log_start)     # what was removed was committed
        return self._go_on()

    # -- offers --------------------------------------------------------------------------------------------

    def _offered(self, offer: Offered) -> Effects:
        if offer.epoch < self.promised:
            return Effects(answer=Answer(Verdict.STALE, self.promised, 0))
        if offer.epoch > self.promised:
            return self._promise(offer.epoch)
        if self.cutting or self.durable_promise < self.promised:
            return NOTHING
        log = self.log
        if offer.start > log.log_end or not self._joins_on(offer):
            return self._does_not_join(offer)
        if offer.differs_at is not None:
            self.cutting = True
            self.matched = min(self.matched, offer.differs_at)
            return Effects(truncate=offer.differs_at)
        if not self.certain and self._vote_end is None:
            self._vote_end = max(offer.leader_end, offer.epoch_start + 1)
        if offer.end > log.log_end:
            return ACCEPT
        self.matched = max(self.matched, offer.end)
        return HEAR

    def _joins_on(self, offer: Offered) -> bool:
        """Whether our log up to offer.start is the leader's."""
        start = offer.start
        if start <= self.high_watermark or start == 0:
            return True                            # committed, so it is the same everywhere
        if offer.previous_epoch == 0:
            return False
        return epoch_at(self.log.epochs, start - 1) == offer.previous_epoch

    def _does_not_join(self, offer: Offered) -> Effects:
        log = self.log
        if offer.start <= offer.log_start:
            # The leader keeps nothing before: what we have was removed there, or cannot be compared any more.
            self.cutting = True
            self.matched = 0
            self.doubt()
            return Effects(reset=offer.start)
        if offer.start > log.log_end:
            return self._mismatch(log.log_end)
        # The whole run goes: at most one round for each epoch, not one for each record.
        return self._mismatch(max(run_start(log.epochs, offer.start - 1), self.high_watermark))

    def heard(self, offer: Offered, safe: int) -> Effects:
        """The rest of an offer that joined on, once its batches are in our log: what is committed, who may vote.

        safe: our log is safe up to there at the level that the stream asks for.
        """
        known = min(offer.high_watermark, self.matched)
        moved = None
        if known > self.high_watermark:
            self.high_watermark = moved = known
        # A probe; or batches that come once more, because the first answer came when the leader probed lower.
        again = offer.end == offer.start or offer.end <= self._answered
        return Effects(high_watermark=moved, certain=self._may_vote(offer), answer=self._vouch(safe, again=again))

    def _may_vote(self, offer: Offered) -> bool:
        if self.certain or not self.whole or self._vote_end is None:
            return False
        if self.matched < self._vote_end or self.high_watermark <= offer.epoch_start:
            return False
        self.certain = True
        self._vote_end = None
        return True

    def doubt(self) -> None:
        """This copy does not vote until it is known once more to hold what the leader holds."""
        self.certain = False
        self._vote_end = None

    # -- what is safe --------------------------------------------------------------------------------------

    def _flushed(self, event: Flushed) -> Effects:
        answer = self._vouch(event.end, again=False)
        return Effects(answer=answer) if answer is not None else NOTHING

    def _vouch(self, safe: int, *, again: bool) -> Answer | None:
        if self.cutting or self.durable_promise < self.promised:
            return None
        end = min(safe, self.matched)
        if end <= self._answered and not again:
            return None
        self._answered = max(end, self._answered)
        return Answer(Verdict.ACCEPTED, self.promised, end)

    def _mismatch(self, end: int) -> Effects:
        return Effects(answer=Answer(Verdict.MISMATCH, self.promised, end))

    def _go_on(self) -> Effects:
        """A promise or a cut is on disk: who asked meanwhile is answered."""
        if self.cutting or self.durable_promise < self.promised:
            return NOTHING
        if self._sealing:
            self._sealing = False
            return Effects(seal=True)
        return self._mismatch(self.log.log_end)

    # -- promises ------------------------------------------------------------------------------------------

    def _seal_asked(self, epoch: int) -> Effects:
        if epoch <= self.promised and self.durable_promise >= self.promised and not self.cutting:
            return Effects(seal=True)              # of an older epoch: the answer names the newer promise
        self._sealing = True
        return self._promise(epoch) if epoch > self.promised else NOTHING

    def _promise(self, epoch: int) -> Effects:
        self.promised = epoch
        self.matched = 0
        self._answered = 0
        self._vote_end = None
        return Effects(step_down=True, promise=epoch)

    def _promised_durably(self, epoch: int) -> Effects:
        self.durable_promise = max(self.durable_promise, epoch)
        return self._go_on()
