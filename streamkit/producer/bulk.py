"""One put_columns under way: rows go in as the buffer has room; whoever called waits in between."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from streamkit._core.columns import Column
from streamkit._core.outcome import ColumnsHandle
from streamkit.errors import BufferFull, Closed, InvalidRequest, WrongShard
from streamkit.producer.outbox import Outbox, Target


class BulkPut:
    """Leaving the `with` block early fails the rows that were not taken: a handle is never left undecided."""

    def __init__(self, outbox: Outbox, target: Target, keys: Any, values: Any) -> None:
        self._outbox = outbox
        self._target = target
        self._keys = None if keys is None else _column(keys, "keys")
        self._values = _column(values, "values")
        self.handle = ColumnsHandle((self._keys or self._values).count, outbox.loop)

    def take(self) -> bool:
        """Take what there is room for; True when no row is left. Call it again when room was freed."""
        handle = self.handle
        while True:
            try:
                if self._target.accumulator.put_columns(self._keys, self._values, handle):
                    return True
            except (InvalidRequest, WrongShard) as error:
                if handle.count != self._values.count:
                    raise
                self._fail(error, one=True)
                continue
            self._outbox.look_at_pressure()
            if self._outbox.config.on_full == "drop_new":
                handle.abandon(self._outbox.drop(handle.count - handle.taken))
                return True
            if self._outbox.config.on_full == "raise":
                self._fail(self._outbox.buffer_full(), one=False)
                return True
            row = handle.taken
            if self._outbox.fits((len(self._keys[row]) if self._keys else 0) + len(self._values[row])):
                return False
            self._fail(self._outbox.buffer_full(), one=True)

    def __enter__(self) -> BulkPut:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.handle.taken < self.handle.count:
            broken_off = Closed("the bulk put was broken off", what="put_columns")
            self._fail(error if isinstance(error, Closed | BufferFull) else broken_off, one=False)

    def _fail(self, error: Exception, *, one: bool) -> None:
        # Kept for flush, like the failure of a batch: the handle may have been dropped.
        if one:
            self.handle.refuse_row(error)
        else:
            self.handle.abandon(error)
        self._target.sender.keep_failure(self.handle)


def _column(source: Any, name: str) -> Column:
    return Column(source.combine_chunks() if hasattr(source, "combine_chunks") else source, name)
