"""Notes in the metadata store: small documents of faces that keep something beside streams.

    notes/<key>        16 bytes that name the change that wrote it, then the document

A change whose answer was lost is made certain by the name it left: see `swap_certainly`. Called by the broker.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamkit.metadata.certainty import swap_certainly
from streamkit.metadata.store import Store, Swap
from streamkit.model.note import Note, check_note_key, check_note_prefix, check_note_swaps
from streamkit.runtime.interfaces import Random

PREFIX = "notes/"
_NAME_BYTES = 16
_STEP_COUNT = 64                   # notes read at once: at most 32 MiB of them


class Notes:
    """Any node of a cluster may change them."""

    def __init__(self, store: Store, random: Random) -> None:
        self._store = store
        self._random = random

    async def read(self, key: str) -> tuple[bytes | None, int]:
        """The document and its revision; (None, 0) when there is none. Raises InvalidRequest, StoreUnavailable."""
        value, revision = await self._store.read(PREFIX + check_note_key(key))
        return (None, 0) if value is None else (value[_NAME_BYTES:], revision)

    async def swap(self, swaps: Sequence[tuple[str, int, bytes | None]]) -> int | None:
        """All (key, revision, value), or nothing; revision 0: it must not exist; value None: it is deleted.

        The revision they have now, or None when one of them had another and nothing was done. Raises InvalidRequest,
        StoreUnavailable; with outcome "unknown" the change may have been made, or may still be. A change that only
        deletes, and whose answer was lost, counts as made once the first of its notes is gone, whoever deleted it.
        """
        check_note_swaps(swaps)
        name = self._random.uuid()
        made = [Swap(PREFIX + key, revision, None if value is None else name + value) for key, revision, value in swaps]
        made.sort(key=lambda swap: swap.value is None)     # what is written bears witness better than what goes
        return await swap_certainly(self._store, made, once=True)

    async def page(self, prefix: str, after: str, count_max: int, bytes_max: int) -> tuple[list[Note], bool]:
        """Notes whose keys begin with `prefix` and follow `after`, in key order, and whether there are more.

        Ends after count_max notes, or with the one that reaches bytes_max. Not of one moment: what others change
        meanwhile may be seen or not. Raises InvalidRequest, StoreUnavailable.
        """
        check_note_prefix(prefix)
        check_note_prefix(after, "after")
        found: list[Note] = []
        size = 0
        while True:
            step = await self._store.list(PREFIX + prefix, after=PREFIX + after, count_max=_STEP_COUNT)
            for entry in step:
                if len(found) >= count_max or size >= bytes_max:
                    return found, True
                found.append(Note(entry.key.removeprefix(PREFIX), entry.value[_NAME_BYTES:], entry.revision))
                size += len(entry.key) + len(entry.value)
            if len(step) < _STEP_COUNT:
                return found, False
            after = found[-1].key
