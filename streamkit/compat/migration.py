"""An application of the KCL goes on here: its lease table's checkpoints become an application's positions.

`plan` says where each shard would go on, or refuses with everything that cannot be mapped; `carry_out` does it, for an
application that does not exist yet. A checkpoint is mapped when it names a record of our shard: ours is the stream that
the KCL read, through the Kinesis API. Sequence numbers of another service mean nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from streamkit._core import aggregation
from streamkit.client.client import AsyncClient
from streamkit.compat.kcl_table import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, KclLease
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import ApplicationExists, ApplicationNotFound, InvalidPosition, InvalidRequest, NotMapped
from streamkit.model.sequence import parse_sequence_number, sequence_number
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription
from streamkit.protocol.messages import (
    ApplicationDescribed,
    Checkpoint,
    Checkpointed,
    CheckpointItem,
    DescribeApplication,
    JoinApplication,
    LeaveApplication,
    Membership,
)
from streamkit.runtime import environment

_CREATED_MASK = 0xFFFFFFFFF                # of a sequence number's creation time, in seconds


@dataclass(frozen=True, slots=True)
class Move:
    """One shard: from what the table says to the first record that is not finished.

    position: sequence; sub: user records that are finished inside it. ahead: how many stored records follow.
    """

    stream: str
    shard: Shard
    checkpoint: str
    position: int
    sub: int = 0
    ahead: int = 0

    @property
    def start(self) -> str:
        """For JoinApplication."""
        shard = self.shard
        return sequence_number(
            self.position, ordinal=shard.ordinal, created_ms=shard.created_ms, arrived_ms=shard.created_ms
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """moves: in the order of streams and shards. gone: leases of shards that retention removed when they were done.

    owned: leases that a worker of the KCL held when the table was read.
    """

    moves: tuple[Move, ...]
    gone: tuple[str, ...] = ()
    owned: int = 0
    streams: tuple[str, ...] = field(default=())


async def plan(
    client: AsyncClient, leases: Iterable[KclLease], *, stream: str | None = None, start: str | datetime | None = None
) -> Plan:
    """Where each shard would go on; changes nothing.

    stream: which one the table is of, unless its leases say so. start: for leases at AT_TIMESTAMP, whose time the table
    does not hold, and for shards that it does not know. Raises NotMapped with the whole list, StreamNotFound.
    """
    by_stream: dict[str, list[KclLease]] = {}
    refused: list[str] = []
    for lease in leases:
        name = lease.stream or stream
        if not name:
            raise InvalidRequest("the table does not say which stream it is of", try_="name the stream", field="stream")
        by_stream.setdefault(name, []).append(lease)
    moves: list[Move] = []
    gone: list[str] = []
    for name, of_stream in sorted(by_stream.items()):
        description = await client.stream(name, refresh=True)
        shards = {shard.id: shard for shard in description.shards}
        for lease in sorted(of_stream, key=lambda lease: lease.shard):
            shard = shards.get(lease.shard)
            if shard is None and lease.checkpoint == SHARD_END:
                gone.append(f"{name}/{lease.shard}")
                continue
            try:
                moves.append(await _move(client, name, shard, lease, start))
            except InvalidPosition as error:
                refused.append(f"{name}/{lease.shard}: {error}")
        unknown, without = await _unknown(client, description, {lease.shard for lease in of_stream}, start)
        moves += unknown
        refused += without
    if refused:
        raise NotMapped(
            f"{len(refused)} of {len(moves) + len(refused)} shards cannot go on here: {'; '.join(refused)}",
            try_="say where those start that the table does not know (--from); "
            "leases of another service's stream cannot be taken over", shards=refused,
        )
    moves.sort(key=lambda move: (move.stream, move.shard.ordinal))
    owned = sum(1 for of_stream in by_stream.values() for lease in of_stream if lease.owner)
    return Plan(tuple(moves), tuple(gone), owned, tuple(sorted(by_stream)))


async def _move(
    client: AsyncClient, stream: str, shard: Shard | None, lease: KclLease, start: str | datetime | None
) -> Move:
    # Raises InvalidPosition with a reason that stands behind the shard's name.
    if shard is None:
        raise _not("the stream has no such shard")
    if lease.checkpoint == SHARD_END:
        if shard.end is None:
            raise _not("the table says that it has ended, and it takes records")
        return Move(stream, shard, SHARD_END, shard.end)
    if lease.checkpoint in (TRIM_HORIZON, LATEST):
        return await _at(client, stream, shard, lease.checkpoint, lease.checkpoint.lower())
    if lease.checkpoint == AT_TIMESTAMP:
        if not isinstance(start, datetime):
            raise _not("it starts at a time that the table does not hold")
        return await _at(client, stream, shard, lease.checkpoint, start)
    parsed = parse_sequence_number(lease.checkpoint)
    if parsed.ordinal != shard.ordinal or parsed.created_s != shard.created_ms // 1000 & _CREATED_MASK:
        raise _not(f"its checkpoint {lease.checkpoint} is a record of another stream's shard")
    known = await client.resolve_position(shard, "trim_horizon")
    if parsed.sequence >= known.high_watermark:
        raise _not(f"its checkpoint {lease.checkpoint} is a record that does not exist here")
    position, sub = await _after(client, stream, shard, parsed.sequence, lease, known.log_start)
    return Move(stream, shard, lease.checkpoint, position, sub, known.high_watermark - position)


async def _at(client: AsyncClient, stream: str, shard: Shard, told: str, position: str | datetime) -> Move:
    if position == "latest" and shard.end is not None:
        return Move(stream, shard, told, shard.end)
    found = await client.resolve_position(shard, position)
    return Move(stream, shard, told, found.sequence, 0, max(0, found.high_watermark - found.sequence))


async def _after(
    client: AsyncClient, stream: str, shard: Shard, sequence: int, lease: KclLease, log_start: int
) -> tuple[int, int]:
    """Past that record; past so many of its user records when it is an aggregate that is not finished."""
    if sequence >= log_start:
        reader = AsyncReader(
            stream, start={shard.id: lease.checkpoint}, limit=1, codec="bytes", deaggregate=False, client=client
        )
        async for record in reader:
            inside = aggregation.split(record.data) if record.sequence == sequence else None
            if inside is not None and lease.sub + 1 < len(inside):
                return sequence, lease.sub + 1
    return sequence + 1, 0


async def _unknown(
    client: AsyncClient, description: StreamDescription, known: set[str], start: str | datetime | None
) -> tuple[list[Move], list[str]]:
    """Moves of open shards that neither have a lease nor come of one that has, and those that cannot be moved."""
    named = {shard.ordinal for shard in description.shards if shard.id in known}
    moves, refused = [], []
    for shard in description.shards:
        if shard.ordinal in named:
            continue
        if not named.isdisjoint(shard.parents):
            named.add(shard.ordinal)       # it is read from its beginning, once its parents are done
        elif shard.end is None and start is None:
            refused.append(f"{description.name}/{shard.id}: the table has no lease of it")
        elif shard.end is None:
            assert start is not None, "the case before"
            moves.append(await _at(client, description.name, shard, "", start))
    return moves, refused


def _not(why: str) -> InvalidPosition:
    return InvalidPosition(why)


async def carry_out(client: AsyncClient, application: str, made: Plan) -> ApplicationDescribed:
    """Make the application with these positions, and return it. Raises ApplicationExists, and what a join raises."""
    try:
        await client.call(DescribeApplication(application))
    except ApplicationNotFound:
        worker = f"import-{environment.token(8)}"
        for stream in made.streams:
            await _join(client, application, worker, stream, [move for move in made.moves if move.stream == stream])
    else:
        raise ApplicationExists(
            f'application "{application}" exists, and has positions of its own', application=application,
            try_=f"streamkit app delete {application}, or choose another name",
        )
    described = await client.call(DescribeApplication(application))
    assert isinstance(described, ApplicationDescribed), "the only answer"
    return described


async def _join(client: AsyncClient, application: str, worker: str, stream: str, moves: Sequence[Move]) -> None:
    # Whoever joins first says where every shard starts, in one fact; only places inside aggregates are said afterwards.
    joined = await client.call(JoinApplication(
        application, worker, (stream,), "per_shard", start_by_shard={move.shard.id: move.start for move in moves},
        drain_ms=0,
    ))  # fmt: skip
    assert isinstance(joined, Membership), "the only answer"
    inside = {move.shard.uuid: move for move in moves if move.sub}
    items = tuple(
        CheckpointItem(grant.shard.uuid, grant.lease_epoch, 1, move.position, sub_sequence=move.sub)
        for grant in joined.granted if (move := inside.get(grant.shard.uuid)) is not None
    )
    if items:
        answer = await client.call(Checkpoint(application, worker, items))
        assert isinstance(answer, Checkpointed), "the only answer"
    await client.call(LeaveApplication(application, worker, joined.session))
