"""Records that are cancelled by whoever put them, before they are stored.

    open or sealed, not sent     taken out of its batch: fails with Cancelled, at once and for certain
    on its way                   the answer decides: stored, or refused and then taken out
    in doubt                     its whole batch is cancelled by its numbers, once all of its records are to be;
                                 alone it goes with the others, because their order must not change
    of a closed shard            once it lies with the children

What is taken out leaves no hole: batches behind it that were never sent get its numbers. While one of those is on its
way, nothing is taken out before it. A wish that cannot be met is forgotten when the record has its outcome.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from streamkit._core.apart import index_in, take_apart, waits_for
from streamkit._core.hashing import ShardTable
from streamkit._core.outcome import PutHandle
from streamkit.errors import Cancelled
from streamkit.producer.lane import Flight, Lane, Moved

if TYPE_CHECKING:
    from streamkit.producer.sender import Sender

Handle = PutHandle[Any]


class Withdrawals:
    """The wishes of one Sender. `ask` from any thread, the rest on its loop."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._loop = asyncio.get_running_loop()
        self._new: list[Handle] = []
        self._wishes: list[Handle] = []              # that could not be met yet
        self._looking = False
        myself = weakref.ref(self)         # handles that are kept must not keep a producer that was lost

        def ask(handle: Handle) -> None:
            if (found := myself()) is not None:
                found._ask(handle)

        self.ask = ask

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def _ask(self, handle: Handle) -> None:
        self._new.append(handle)
        if len(self._new) == 1 and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        self._wishes += self._new
        self._new = []
        for lane in self._sender.lanes():
            self.look(lane)

    def look(self, lane: Lane) -> None:
        """Meet what can be met in this shard now."""
        self._wishes = [handle for handle in self._wishes if not handle.done()]
        if not self._wishes or self._looking or lane.held or lane.winding_up or lane.moving or lane.ending:
            return                         # of what is ending anyway, nothing that waits is sent
        self._looking = True
        try:
            if any(waits_for(self._sender.accumulator, handle) == lane.index for handle in self._wishes):
                self._sender.seal(lane)
            self._look_at(lane)
        finally:
            self._looking = False
        self._wishes = [handle for handle in self._wishes if not handle.done()]

    def _look_at(self, lane: Lane) -> None:
        wanted: dict[Flight, list[Handle]] = {}
        for flight in lane.window:
            if not flight.given_up:
                handles = [handle for handle in self._wishes if index_in(flight.batch, handle) >= 0]
                if handles:
                    wanted[flight] = handles
        if not wanted:
            return
        for flight, handles in wanted.items():
            if flight.in_doubt and len(handles) == flight.batch.count and lane.identity.producer_id:
                flight.withdrawn = True
                if not flight.in_flight and flight.cancel_until_ms is None:
                    lane.begin_to_cancel(flight, _cancelled(lane), self._sender.now_ms())
        loose = lane.loose()
        first = next((i for i, flight in enumerate(loose) if flight in wanted), len(loose))
        if first < len(loose):
            self._take_out(lane, loose[first:], wanted)
        self._sender.go_on(lane)

    def _take_out(self, lane: Lane, tail: list[Flight], wanted: dict[Flight, list[Handle]]) -> None:
        # As a shard that was closed gives its records to its children, newest first: here to itself.
        targets: list[tuple[int, int] | None] = [None] * self._sender.accumulator.shards
        targets[lane.index] = (lane.shard.hash_start, lane.shard.hash_end)
        table = ShardTable(targets)
        lane.next_sequence = tail[0].batch.sequence
        for flight in reversed(tail):
            leave = wanted.get(flight, [])
            shards = take_apart(self._sender.accumulator, flight.batch, table, leave, _cancelled(lane))
            lane.remove(flight)
            for flush in flight.flushes:
                flush.left += len(shards)
                flush.one_settled()
            for _ in shards:
                lane.moved.appendleft(Moved(flight.deadline_ms - lane.delivery_timeout_ms, flight.flushes))
            self._sender.withdrew(len(leave))


def _cancelled(lane: Lane) -> Cancelled:
    return Cancelled("the record was cancelled by whoever put it", try_="nothing: it is not stored",
                     shard=lane.shard.id)  # fmt: skip
