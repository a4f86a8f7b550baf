"""Parents before children: who waits for whom in an application, and when the wait is over.

A shard that was split or merged away has an end. Its lease is complete once it is checkpointed there, and a shard's
lease is ready once each of its parents' is complete, or gone because retention removed the shard. So no record of a key
is handed out before all that came before it in another shard are processed.

    waiting ──parents complete or gone──▶ ready ──▶ owned … ──checkpointed at the end──▶ complete

All of it decides; `Table.apply` carries out. Called by `applications`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from streamkit.leases import events, facts
from streamkit.leases.table import Application


def map_change(application: Application, found: events.FoundStream) -> facts.MapChanged | None:
    """What the application does not know yet of a stream that it reads; None: nothing."""
    known = application.streams[found.name]
    there = {shard for shard, _, _ in found.leases}
    removed = tuple(shard for shard in known if shard not in there)
    parents = dict(found.parents)
    added = tuple(
        (shard, ordinal, start, any(
            parent in there and not _is_complete(application, parent) for parent in parents.get(shard, ())
        ))
        for shard, ordinal, start in found.leases if shard not in known
    )
    ends = tuple((shard, end) for shard, end in found.ends if application.ends.get(shard) != end)
    if not added and not ends and not removed:
        return None
    new = tuple((shard, parents[shard]) for shard, _, _, _ in added if shard in parents)
    return facts.MapChanged(application.name, found.name, added, new, ends, removed)


def settled(application: Application, shards: Collection[bytes]) -> facts.LeasesCompleted | None:
    """Of `shards` and their children: leases that came to their end, and leases that need wait no more; None: neither.

    shards: in the order of their ordinals where there are several of a stream.
    """
    leases = application.leases
    done = []
    for shard in shards:
        end = application.ends.get(shard)
        if end is not None and shard in leases:
            state, _, _, checkpoint, *_ = leases.row(shard)
            if state != "complete" and checkpoint >= end:
                done.append(shard)
    finished = set(done)
    looked_at = dict.fromkeys([*shards, *(child for shard in done for child in application.children.get(shard, ()))])
    ready = tuple(
        shard for shard in looked_at
        if shard not in finished and shard in leases and leases.row(shard)[0] == "waiting"
        and all(parent in finished or parent not in leases or _is_complete(application, parent)
                for parent in application.parents.get(shard, ()))
    )
    return facts.LeasesCompleted(application.name, tuple(done), ready) if done or ready else None


def positions_set(
    application: Application, places: Mapping[bytes, tuple[int, int]], wall_ms: int, *, undone: bool
) -> facts.PositionsSet:
    """Go on at these (sequence, sub-sequence). A shard whose parents are to be processed again waits for them.

    Also one that nobody named: else what came after in a key would be handed out before what came before. A shard that
    was finished with and is not named stays so.
    """
    leases = application.leases
    completed = {
        shard for shard, place in places.items() if shard in application.ends and place[0] >= application.ends[shard]
    }

    def is_finished(shard: bytes) -> bool:
        return shard in completed if shard in places else shard not in leases or _is_complete(application, shard)

    waiting = tuple(
        shard for shards in application.streams.values() for shard in shards
        if not is_finished(shard) and (shard in places or leases.row(shard)[0] != "waiting")
        and not all(is_finished(parent) for parent in application.parents.get(shard, ()))
    )
    return facts.PositionsSet(
        application.name, () if undone else tuple((shard, *place) for shard, place in places.items()),
        waiting, tuple(sorted(completed)), wall_ms, undone,
    )


def _is_complete(application: Application, shard: bytes) -> bool:
    return shard in application.leases and application.leases.row(shard)[0] == "complete"
