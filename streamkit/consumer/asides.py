"""Keys of a lane that wait for one of their records, while the lane goes on with the others.

    record fails ──▶ aside: tried again, by turns with the lane; later records of its key queue up behind it
                       └── all of them finished ──▶ over: the key's next records are the lane's again

A key that is aside has a mark of its own, which counts instead of the lane's (`ahead`). When it is over it keeps that
mark until the lane's has passed it. Without keys (Ordering.none) each record is a row of its own, and waits alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from streamkit._core.batch import Batch
from streamkit._core.lanes import parted, row_at
from streamkit.consumer.aggregates import Place
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.lane import Lane


@dataclass(slots=True)
class Dealt:
    """A batch of which some parts are not finished."""

    parts: int
    records: int
    size_bytes: int
    finished: Callable[[], None]


@dataclass(slots=True)
class _Row:
    lane: Lane                             # beside the lane it comes from
    waiting: deque[tuple[Batch[Any], Dealt, BaseException | None]]     # the first is in hand; its error, if it failed
    over: bool = False


class Asides:
    """Of one lane. dealt: what its part in hand belongs to.

    has_room: whether another row may have a mark. begin: runs a task. part_done: called for each part that is finished.
    """

    def __init__(
        self, lane: Lane, new_track: Callable[[], Track], *, by_key: bool, has_room: Callable[[], bool],
        begin: Callable[[Coroutine[Any, Any, None]], None], part_done: Callable[[Dealt], None],
    ) -> None:
        self.dealt: Dealt | None = None
        self._lane = lane
        self._new_track = new_track
        self._by_key = by_key
        self._has_room = has_room
        self._begin = begin
        self._part_done = part_done
        self._rows: dict[int, _Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, record: Batch[Any], error: BaseException) -> bool:
        """One record that failed just now; False: there is no room, the lane itself is to try it again."""
        number = row_at(record, 0, self._by_key)
        row = self._rows.get(number)
        if row is None and not self._has_room():
            return False
        if row is None or row.over:
            track = self._new_track()
            track.finished = record.place(0)
            row = self._rows[number] = _Row(self._lane.beside(track), deque())
            self._wait(row, record, error)
            self._begin(self._run(row))
        else:
            self._wait(row, record, error)
        return True

    def left_of(self, batch: Batch[Any]) -> Batch[Any] | None:
        """Without the records of keys that are aside, which queue up there; None when nothing is left."""
        active = {number: row for number, row in self._rows.items() if not row.over}
        left, held = parted(batch, list(active), self._by_key) if active else (batch, None)
        for number, row in active.items():
            if held is None:
                break
            held, own = parted(held, [number], self._by_key)
            if own is not None:
                self._wait(row, own, None)
        return left

    def reached(self) -> list[Place]:
        """Of each key that is aside, the place of its first record that is not finished."""
        return [row.lane.track.reached for row in self._rows.values() if not row.over]

    def marks(self, lane_mark: int) -> list[tuple[int, int]]:
        """(row, sequence) of all keys whose mark is another than the lane's."""
        told = []
        for number, row in list(self._rows.items()):
            mark = row.lane.track.reached[0]
            if row.over and mark <= lane_mark:
                del self._rows[number]
            else:
                told.append((number, mark))
        return told

    def _wait(self, row: _Row, batch: Batch[Any], error: BaseException | None) -> None:
        assert self.dealt is not None, "the lane has a part in hand"
        self.dealt.parts += 1
        row.waiting.append((batch, self.dealt, error))

    async def _run(self, row: _Row) -> None:
        track = row.lane.track
        while row.waiting:
            batch, dealt, error = row.waiting[0]
            await (row.lane.work(batch) if error is None else row.lane.alone(batch, error))
            track.finished = max(track.finished, batch.place(len(batch)))
            row.waiting.popleft()
            self._part_done(dealt)
        row.over = True
