"""A change whose outcome is certain, over a store that may lose answers.

A change that was answered with "unknown" is asked for again, under the same revisions: at most one of the two can be
made. Once it is refused, nothing of it is under way any more, and a read says whether the first one was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from streamkit.errors import StoreUnavailable
from streamkit.metadata.store import Store, Swap

_TRIES = 4
_AGAIN_SECONDS = 0.1               # before the second try; doubled each time


async def swap_certainly(store: Store, swaps: Sequence[Swap], *, once: bool = False) -> int | None:
    """The new revision, or None when somebody else's change was first.

    The first swap is the witness: nobody else writes its value over its revision. A deletion counts as ours whoever
    made it. Raises StoreUnavailable when the store does not answer in several tries; with outcome "unknown" the change
    may still be made later.

    once: whoever is told None makes a change that must not be made twice. A witness that shows another's value may have
    shown ours before: then that outcome is unknown, too. Without it None is told.
    """
    in_doubt = False
    for count in range(_TRIES):
        try:
            revision = await store.compare_and_swap_many(swaps)
            if revision is not None or not in_doubt:
                return revision
            revision = await _became_of(store, swaps[0])
            if revision is not None or not once:
                return revision
            break
        except StoreUnavailable as error:
            in_doubt |= error.facts["outcome"] == "unknown"
            if not in_doubt or count == _TRIES - 1:
                facts = error.facts | {"outcome": "unknown" if in_doubt else "not_done"}
                raise StoreUnavailable(str(error), try_=error.try_, **facts) from error
        await asyncio.sleep(_AGAIN_SECONDS * 2**count)
    raise StoreUnavailable(
        "others have changed it since; whether this change was made before theirs cannot be told",
        try_="read before you change it again", store="", outcome="unknown",
    )


async def _became_of(store: Store, witness: Swap) -> int | None:
    found, revision = await store.read(witness.key)
    return revision if found == witness.value else None
