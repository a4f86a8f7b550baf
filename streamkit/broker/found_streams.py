"""Streams as the coordinator tells the lease rules of them: shards with their start, their parents and their end."""

from __future__ import annotations

from collections.abc import Mapping

from streamkit.errors import InvalidPosition
from streamkit.leases import events
from streamkit.leases.table import Application
from streamkit.model.sequence import parse_sequence_number
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription


def is_same(application: Application, stream: StreamDescription) -> bool:
    """Whether the stream is the one the application reads, and not a later one of the same name."""
    created_ms = application.created_ms_of.get(stream.name, 0)
    known = application.streams[stream.name]
    return created_ms in (0, stream.created_ms) and (created_ms > 0 or any(s.uuid in known for s in stream.shards))


def is_older(application: Application, stream: StreamDescription) -> bool:
    """Whether the application knows of more than this map: numbers grow, and the newest shards are open, so none left.

    A coordinator that has just taken over on another node may hear of a resharding after it has replayed it.
    """
    known = application.streams[stream.name].values()
    return max(known, default=-1) > max(shard.ordinal for shard in stream.shards)


def found_stream(stream: StreamDescription, starts: Mapping[bytes, int]) -> events.FoundStream:
    """The stream as the lease rules want it. starts: of the shards that are new to the application."""
    uuids = {shard.ordinal: shard.uuid for shard in stream.shards}
    return events.FoundStream(
        stream.name,
        tuple((shard.uuid, shard.ordinal, starts.get(shard.uuid, 0)) for shard in stream.shards),
        stream.created_ms,
        tuple(
            (shard.uuid, tuple(uuids[parent] for parent in shard.parents if parent in uuids))
            for shard in stream.shards if not uuids.keys().isdisjoint(shard.parents)
        ),
        tuple((shard.uuid, shard.end) for shard in stream.shards if shard.end is not None),
    )


def start_of(text: str | None, shard: Shard, named: set[int]) -> tuple[str, int]:
    """(kind, value), as in ResolvePosition, of a start that is given shard by shard. Raises InvalidPosition.

    named: ordinals that were spoken of and their descendants, so far. What came of a named shard is read from its
    beginning, and a closed shard that nobody named is over: the caller spoke of those that are open.
    """
    if text is None and named.isdisjoint(shard.parents):
        if shard.end is not None:
            return "latest", 0
        raise InvalidPosition(
            f"start says nothing about {shard.id}", try_="name every open shard of the stream", position=shard.id
        )
    named.add(shard.ordinal)
    if text is None or text in ("trim_horizon", "latest"):
        return text or "trim_horizon", 0
    return "at_sequence", parse_sequence_number(text).sequence
