"""Live-object counters of the debug build: the tests require zero at the end.

Built with STREAMKIT_DEBUG=1 the counted classes raise and lower one number each; in the ordinary build
nothing is compiled in and `live()` is empty.
"""

cdef tuple NAMES = ("Batch", "Record", "Accumulator", "SealedBatch", "PutHandle", "Slab", "ReceiveBlock", "Journal",
                    "ShardCore", "Segment", "SparseIndex")

ENABLED = bool(SK_DEBUG)


def live() -> dict:
    """How many objects of each counted class exist now; empty in the ordinary build."""
    if not SK_DEBUG:
        return {}
    return {name: live_counts[i] for i, name in enumerate(NAMES)}
