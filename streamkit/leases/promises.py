"""What holds of every application at rest, looked at from outside: for operators, and when a coordinator starts.

The state machine keeps these by its rules; a log that was damaged, or a mistake of ours, would show here first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamkit.leases.table import Application
from streamkit.model.limits import HASH_KEYS
from streamkit.model.shard import shard_id

_BUSY = frozenset({"owned", "draining"})


@dataclass(frozen=True, slots=True)
class HashRange:
    """A shard as the catalog has it; start and end: half-open; is_open: it takes records."""

    shard: bytes
    ordinal: int
    start: int
    end: int
    is_open: bool


def problems(application: Application, maps: Mapping[str, Sequence[HashRange]]) -> list[str]:
    """One line for each promise that does not hold: every open shard has a lease, ranges tile, parents come first …

    maps: the shards of each stream as they are now; a stream that is missing is not looked at.
    """
    found = []
    for stream in sorted(maps):
        found += _of_ranges(application, stream, maps[stream])
    for shard, session, state in application.leases.owners():
        shown = f"{shard_id(_ordinal(application, shard))} of {application.stream_of.get(shard, '?')}"
        lease_epoch = application.leases.row(shard)[2]
        if session and session not in application.members:
            found.append(f"{shown} is owned by session {session}, which is no member")
        if session and not lease_epoch:
            found.append(f"{shown} has an owner and no lease epoch")
        if (state in _BUSY) != bool(session) and state not in ("paused", "complete"):
            found.append(f"{shown} is {state} and has {'an' if session else 'no'} owner")
        if state in _BUSY and (early := _unfinished_parents(application, shard)):
            found.append(f"{shown} is {state} before its parents are complete: {', '.join(early)}")
        if state == "complete" and shard not in application.ends:
            found.append(f"{shown} is complete and takes records still")
    return found


def _of_ranges(application: Application, stream: str, shards: Sequence[HashRange]) -> list[str]:
    found = []
    reached = 0
    for each in sorted((each for each in shards if each.is_open), key=lambda each: each.start):
        if each.shard not in application.leases:
            found.append(f"{shard_id(each.ordinal)} of {stream} is open and has no lease")
            continue
        if each.start != reached:
            overlap = each.start < reached
            found.append(f"{stream}: hash keys {min(each.start, reached)} to {max(each.start, reached)} "
                         f"{'belong to two leases' if overlap else 'belong to no lease'}")
        reached = max(reached, each.end)
    if reached != HASH_KEYS:
        found.append(f"{stream}: hash keys from {reached} on belong to no lease")
    return found


def _unfinished_parents(application: Application, shard: bytes) -> list[str]:
    return [
        shard_id(_ordinal(application, parent)) for parent in application.parents.get(shard, ())
        if parent in application.leases and application.leases.row(parent)[0] != "complete"
    ]


def _ordinal(application: Application, shard: bytes) -> int:
    return application.streams.get(application.stream_of.get(shard, ""), {}).get(shard, -1)
