"""Pushed fetches: a fetch that begins again by itself, for as long as its client gives credit.

    Subscribe ──▶ served like a fetch ──▶ sent ──credit left──▶ served again, from where the answer ended
                        │                   └────none left────▶ rests until GiveCredit
                        └──▶ refused (lease lost, leader moved, node draining): over

Everything that bounds a fetch bounds this one: the high watermark, the lease, the link's room, cold reads on a thread.
What a client that takes nothing can cost is its credit and one batch. When nothing comes for PUSH_WAIT_MS, an empty
answer says that the subscription lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from streamkit.expressions.condition import Condition
from streamkit.protocol.messages import Subscribe

if TYPE_CHECKING:
    from streamkit.broker.fetch import Waiting

PUSH_WAIT_MS = 10_000
PUSH_BYTES_MAX = 1024 * 1024               # of one answer, unless a single batch is larger
CREDIT_BYTES_MAX = 64 * 1024 * 1024        # that a client can have open
SUBSCRIPTIONS_MAX = 10_000                 # of one connection


@dataclass(slots=True, eq=False)
class PushedFetch:
    """One subscription. resting: it waits for credit. over: it was ended, and is not served again."""

    wait_ms: ClassVar[int] = PUSH_WAIT_MS

    request_id: int
    shard: bytes
    start: int
    credit_bytes: int
    application: str
    session: int
    lease_epoch: int
    condition: Condition | None = None
    resting: bool = False
    over: bool = False
    waiting: Waiting | None = None

    @classmethod
    def of(cls, request_id: int, message: Subscribe) -> PushedFetch:
        return cls(
            request_id, message.shard, message.start, min(message.credit_bytes, CREDIT_BYTES_MAX), message.application,
            message.session, message.lease_epoch,
        )

    @property
    def bytes_max(self) -> int:
        return min(self.credit_bytes, PUSH_BYTES_MAX)
