"""What a failure means for the records behind it, by the producer's `on_failure`.

    continue   nothing: they go on
    halt_key   those of the same key fail with KeyHalted, until resume_key(key)
    halt       all of them fail with KeyHalted, until resume_key()

A batch ends as a whole, so records that share one with a halted key fail with it, and halt their keys in turn: what is
stored of a key is always what was put before the first of its failures.
"""

from __future__ import annotations

from streamkit._core.accumulator import SealedBatch
from streamkit._core.batch import Batch
from streamkit.errors import KeyHalted, StreamkitError
from streamkit.producer.lane import Lane, Plan

_NAMED_MAX = 5                             # keys that an error names


def keys_of(batch: SealedBatch) -> set[str]:
    """Records without a key have no order to keep."""
    keys = Batch(bytes(batch.payload)).keys()
    return {key for key in keys if key}


def halted_by(error: StreamkitError, keys: set[str] | None) -> KeyHalted:
    """keys: None: all of them."""
    named = sorted(keys or ())[:_NAMED_MAX]
    return KeyHalted(
        f"an earlier record {'of the same key ' if keys else ''}failed: {error}",
        try_="settle what failed first, then resume_key() and put it again; it was not stored",
        keys=named, cause=error.code,
    )  # fmt: skip


class HaltedKeys:
    """The keys of which something failed; for one stream."""

    def __init__(self) -> None:
        self._errors: dict[str, StreamkitError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, batch: SealedBatch, error: StreamkitError) -> None:
        """`batch` failed with `error`."""
        for key in keys_of(batch):
            self._errors.setdefault(key, error)

    def resume(self, key: str | None) -> None:
        """None: all of them."""
        if key is None:
            self._errors.clear()
        else:
            self._errors.pop(key, None)

    def why_not(self, batch: SealedBatch) -> KeyHalted | None:
        """The error of a batch that holds a record of a halted key."""
        keys = keys_of(batch) & self._errors.keys()
        return halted_by(self._errors[min(keys)], keys) if keys else None

    def extend(self, lane: Lane, plan: Plan, now_ms: int) -> None:
        """Batches of a stopped lane that come behind failed ones and hold their keys fail with them.

        One that may be stored is cancelled first.
        """
        failing = {id(flight): error for flight, error in plan.fail}
        for flight in [flight for flight in lane.window if not flight.given_up]:
            error = failing.get(id(flight))
            if error is None and flight.cancel_until_ms is None and (error := self.why_not(flight.batch)) is not None:
                if flight.in_doubt and lane.identity.producer_id:
                    lane.begin_to_cancel(flight, error, now_ms)
                    plan.ask = True
                else:
                    told = lane.may_be_stored(flight, error) if flight.in_doubt else error
                    plan.fail.append((flight, told))
                    plan.renumber = not lane.winding_up
            if error is not None:
                self.add(flight.batch, error)
        lane.weigh_holes(plan)
