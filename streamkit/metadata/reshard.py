"""Resharding as arithmetic on a stream's map: which shards close, and which children take their ranges. Pure.

    split   one open shard ──▶ two children          merge   neighbouring open shards ──▶ one child
    scale   open shards ──▶ children of nearly equal ranges; a shard whose range is wanted as it is stays open

A plan's children cover exactly the ranges of its parents; a child's parents are the shards that its range overlaps, so
that whoever reads a child after its parents sees each key's records in order. `ReshardEntry` is a plan on its way:
written to the store before anything is done, with the end of each parent once that is known, and gone with the
transaction that closes the parents and opens the children (`resharded`).
Called by the broker. Read `Plan`, then `resharded`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec

from streamkit.errors import CorruptFile, InvalidRequest, ShardClosed, ShardNotFound
from streamkit.model import limits
from streamkit.model.shard import Shard, even_ranges, shard_id
from streamkit.model.stream import StreamDescription

CREATED_AFTER_MS = 1_000       # a child's creation after its parents' end: its sequence numbers exceed all of theirs


@dataclass(frozen=True, slots=True)
class Child:
    """A shard to be made. parents: ordinals, in key order."""

    hash_start: int
    hash_end: int
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """parents: ordinals of the shards that close. children: what takes their ranges. Both in key order."""

    parents: tuple[int, ...]
    children: tuple[Child, ...]


# ---- plans ---------------------------------------------------------------------------------------------------


def split(stream: StreamDescription, ordinal: int, at: int | None = None) -> Plan:
    """Two children; the second begins with hash key `at`, None: the middle. Raises as `open_shard`, InvalidRequest."""
    shard = open_shard(stream, ordinal)
    if at is None:
        at = (shard.hash_start + shard.hash_end) // 2
    if not shard.hash_start < at < shard.hash_end:
        raise InvalidRequest(
            f"{shard.id} of {stream.name} cannot be split at {at}: its hash keys are {shard.hash_start} to "
            f"{shard.hash_end - 1}",
            try_="choose a hash key above the first and not above the last", field="at", value=str(at),
        )
    return Plan((ordinal,), (Child(shard.hash_start, at, (ordinal,)), Child(at, shard.hash_end, (ordinal,))))


def merge(stream: StreamDescription, ordinals: Collection[int]) -> Plan:
    """One child of two or more neighbours. Raises as `open_shard`; InvalidRequest when they are not neighbours."""
    parents = sorted((open_shard(stream, ordinal) for ordinal in dict.fromkeys(ordinals)), key=_start)
    if len(parents) < 2 or len(parents) != len(ordinals):
        raise InvalidRequest(
            "a merge takes two different shards or more", try_=f"streamkit stream describe {stream.name}",
            field="shards", value=len(parents),
        )
    for left, right in pairwise(parents):
        if left.hash_end != right.hash_start:
            raise InvalidRequest(
                f"{left.id} and {right.id} of {stream.name} are not neighbours: "
                f"{left.hash_end - 1} and {right.hash_start} do not follow one another",
                try_=f"streamkit stream describe {stream.name} shows the ranges", field="shards", value=right.id,
            )
    chosen = tuple(shard.ordinal for shard in parents)
    return Plan(chosen, (Child(parents[0].hash_start, parents[-1].hash_end, chosen),))


def scale(stream: StreamDescription, count: int) -> Plan | None:
    """`count` open shards of nearly equal ranges; None: that is how it is. Raises InvalidRequest."""
    if not 1 <= count <= limits.STREAM_SHARDS_MAX:
        raise InvalidRequest(
            f"shards must be 1..{limits.STREAM_SHARDS_MAX}, got {count}", try_="choose shards in that range",
            field="shards", value=count,
        )
    shards = open_shards(stream)
    wanted = even_ranges(count)
    kept = {(shard.hash_start, shard.hash_end) for shard in shards}.intersection(wanted)
    parents = [shard for shard in shards if (shard.hash_start, shard.hash_end) not in kept]
    if not parents:
        return None
    ranges = [each for each in wanted if each not in kept]
    return Plan(tuple(shard.ordinal for shard in parents), tuple(_overlapped(ranges, parents)))


def _overlapped(ranges: Iterable[tuple[int, int]], parents: Sequence[Shard]) -> Iterable[Child]:
    # Both in key order, so one walk over the parents finds who overlaps whom.
    first = 0
    for start, end in ranges:
        while parents[first].hash_end <= start:
            first += 1
        last = first
        while last < len(parents) and parents[last].hash_start < end:
            last += 1
        yield Child(start, end, tuple(shard.ordinal for shard in parents[first:last]))


def open_shards(stream: StreamDescription) -> list[Shard]:
    """Those that take records, in key order."""
    return sorted((shard for shard in stream.shards if shard.closed_ms is None), key=_start)


def open_shard(stream: StreamDescription, ordinal: int) -> Shard:
    """Raises ShardNotFound, ShardClosed."""
    shard = next((shard for shard in stream.shards if shard.ordinal == ordinal), None)
    if shard is None:
        raise ShardNotFound(
            f"{stream.name} has no shard {shard_id(ordinal) if ordinal < 10**12 else ordinal}",
            try_=f"streamkit stream describe {stream.name}", shard=ordinal,
        )
    if shard.closed_ms is not None:
        raise ShardClosed(
            f"{shard.id} of {stream.name} was closed; its children take its keys",
            try_=f"streamkit stream describe {stream.name} shows the open ones",
            shard=shard.uuid.hex(), map_version=stream.map_version,
        )
    return shard


def _start(shard: Shard) -> int:
    return shard.hash_start


# ---- a plan on its way ---------------------------------------------------------------------------------------


class ParentEntry(msgspec.Struct, frozen=True):
    """end: one past its closing batch, once a majority holds that; None until then."""

    ordinal: int
    uuid: str
    end: int | None = None


class ChildEntry(msgspec.Struct, frozen=True):
    """Its ordinal and identity are settled before anything is done, so that doing it twice makes it once."""

    ordinal: int
    uuid: str
    hash_start: str
    hash_end: str
    parents: tuple[int, ...]


class ReshardEntry(msgspec.Struct, frozen=True):
    """What the store holds under reshards/<stream>; uuids in hexadecimal, hash bounds as decimal text."""

    stream: str
    id: str
    started_ms: int
    parents: tuple[ParentEntry, ...]
    children: tuple[ChildEntry, ...]
    format: int = 1

    def children_of(self, ordinal: int) -> tuple[ChildEntry, ...]:
        return tuple(child for child in self.children if ordinal in child.parents)

    @property
    def closed(self) -> bool:
        """Every parent has an end: the transaction is due."""
        return all(parent.end is not None for parent in self.parents)


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(ReshardEntry)


def encode_entry(entry: ReshardEntry) -> bytes:
    return _encode(entry)


def decode_entry(key: str, value: bytes) -> ReshardEntry:
    """Raises CorruptFile."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptFile(
            f"the metadata under {key} cannot be read: {error}",
            try_="restore the metadata from a backup", path=key, position=0, reason=str(error),
        ) from error


def new_entry(stream: StreamDescription, plan: Plan, uuids: Sequence[bytes], now_ms: int) -> ReshardEntry:
    """uuids: the plan's own identity, then one a child."""
    by_ordinal = {shard.ordinal: shard for shard in stream.shards}
    following = max(by_ordinal) + 1        # the newest shard is open, so it is still in the map
    return ReshardEntry(
        stream=stream.name, id=uuids[0].hex(), started_ms=now_ms,
        parents=tuple(ParentEntry(ordinal, by_ordinal[ordinal].uuid.hex()) for ordinal in plan.parents),
        children=tuple(
            ChildEntry(following + number, uuid.hex(), str(child.hash_start), str(child.hash_end), child.parents)
            for number, (child, uuid) in enumerate(zip(plan.children, uuids[1:], strict=True))
        ),
    )


def with_ends(entry: ReshardEntry, ends: Mapping[int, int]) -> ReshardEntry:
    """ends: ordinal → end, of parents whose closing batch is safe. What is known already stays."""
    return msgspec.structs.replace(entry, parents=tuple(
        msgspec.structs.replace(parent, end=ends.get(parent.ordinal) if parent.end is None else parent.end)
        for parent in entry.parents
    ))


def fits(stream: StreamDescription, entry: ReshardEntry) -> bool:
    """Whether the plan was made for this stream, and its parents are all open."""
    still_open = {shard.ordinal: shard.uuid.hex() for shard in stream.shards if shard.closed_ms is None}
    return all(still_open.get(parent.ordinal) == parent.uuid for parent in entry.parents)


def resharded(stream: StreamDescription, entry: ReshardEntry, now_ms: int, *, epoch: int = 1) -> StreamDescription:
    """The stream after the transaction: parents closed with their ends, children open in `epoch`."""
    assert entry.closed, "children are opened when no parent takes records any more"
    assert fits(stream, entry), "a plan is carried out once, on the stream that it was made for"
    ends = {parent.ordinal: parent.end for parent in entry.parents}
    closed_ms = max(now_ms, *(shard.created_ms for shard in stream.shards if shard.ordinal in ends))
    shards = tuple(
        replace(
            shard, closed_ms=closed_ms, end=ends[shard.ordinal],
            children=tuple(child.ordinal for child in entry.children_of(shard.ordinal)),
        ) if shard.ordinal in ends else shard
        for shard in stream.shards
    )
    made = tuple(
        Shard(
            ordinal=child.ordinal, uuid=bytes.fromhex(child.uuid), hash_start=int(child.hash_start),
            hash_end=int(child.hash_end), created_ms=closed_ms + CREATED_AFTER_MS, parents=child.parents,
            epoch=epoch,
        )
        for child in entry.children
    )
    return with_shards(stream, shards + made)


def with_shards(stream: StreamDescription, shards: tuple[Shard, ...]) -> StreamDescription:
    """The stream with another map, whose version is the next."""
    config = replace(stream.config, shards=sum(shard.closed_ms is None for shard in shards))
    return replace(stream, config=config, map_version=stream.map_version + 1, shards=shards)


def expired(stream: StreamDescription, now_ms: int, retention_ms: int) -> tuple[Shard, ...]:
    """Closed shards all of whose records are too old to be kept; none before its parents."""
    left = {shard.ordinal for shard in stream.shards}
    found = []
    for shard in stream.shards:
        old = shard.closed_ms is not None and shard.closed_ms + retention_ms < now_ms
        if old and left.isdisjoint(shard.parents):
            found.append(shard)
            left.discard(shard.ordinal)
    return tuple(found)
