"""Between what the wire says and what the rooms say: streams and shards, positions, errors.

The broker turns model values into messages, the client turns them back; both directions stand here side by
side so that they cannot drift apart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamkit.errors import InternalError, InvalidRequest, ProtocolMismatch, StreamkitError, from_code
from streamkit.model.limits import HASH_KEYS
from streamkit.model.position import AfterSequence, AtSequence, AtTime, Latest, Position, TrimHorizon
from streamkit.model.shard import Shard
from streamkit.model.stream import (
    UNCHANGED,
    Durability,
    StreamConfig,
    StreamDescription,
    StreamStatus,
    Unchanged,
)
from streamkit.protocol.messages import AlterStream, CreateStream, Failure, ShardInfo, SplitShard, StreamInfo

_HASH_BYTES = 17                           # 2**128, the end of the last shard, needs one bit more than 16 bytes


def shard_to_wire(shard: Shard) -> ShardInfo:
    return ShardInfo(
        ordinal=shard.ordinal,
        uuid=shard.uuid,
        hash_start=shard.hash_start.to_bytes(_HASH_BYTES, "big"),
        hash_end=shard.hash_end.to_bytes(_HASH_BYTES, "big"),
        created_ms=shard.created_ms,
        closed_ms=shard.closed_ms,
        parents=shard.parents,
        children=shard.children,
        epoch=shard.epoch,
        leader=shard.leader,
        address=shard.address,
        end=shard.end,
    )


def shard_from_wire(info: ShardInfo) -> Shard:
    return Shard(
        ordinal=info.ordinal,
        uuid=info.uuid,
        hash_start=int.from_bytes(info.hash_start, "big"),
        hash_end=int.from_bytes(info.hash_end, "big"),
        created_ms=info.created_ms,
        closed_ms=info.closed_ms,
        parents=info.parents,
        children=info.children,
        epoch=info.epoch,
        leader=info.leader,
        address=info.address,
        end=info.end,
    )


def stream_to_wire(stream: StreamDescription, *, with_shards: bool = True) -> StreamInfo:
    """with_shards False: for lists; StreamInfo.shard_count still tells how many there are."""
    config = stream.config
    return StreamInfo(
        name=stream.name,
        status=stream.status.value,
        shard_count=config.shards,
        retention_hours=config.retention_hours,
        retention_bytes=config.retention_bytes,
        durability=config.durability.value,
        record_bytes_max=config.record_bytes_max,
        codec=config.codec,
        created_ms=stream.created_ms,
        map_version=stream.map_version,
        shards=tuple(map(shard_to_wire, stream.shards)) if with_shards else (),
    )


def stream_from_wire(info: StreamInfo) -> StreamDescription:
    """Raises ProtocolMismatch for a status or durability that this build does not know."""
    try:
        return StreamDescription(
            name=info.name,
            status=StreamStatus(info.status),
            config=StreamConfig(
                shards=info.shard_count,
                retention_hours=info.retention_hours,
                retention_bytes=info.retention_bytes,
                durability=Durability(info.durability),
                record_bytes_max=info.record_bytes_max,
                codec=info.codec,
            ),
            created_ms=info.created_ms,
            map_version=info.map_version,
            shards=tuple(map(shard_from_wire, info.shards)),
        )
    except (ValueError, StreamkitError) as cause:
        raise ProtocolMismatch(
            f"the broker describes stream {info.name!r} in a way this client does not know: {cause}",
            try_="pip install --upgrade streamkit",
            reason="stream",
        ) from cause


def create_to_wire(name: str, config: StreamConfig) -> CreateStream:
    return CreateStream(
        name=name,
        shards=config.shards,
        retention_hours=config.retention_hours,
        retention_bytes=config.retention_bytes,
        durability=config.durability.value,
        record_bytes_max=config.record_bytes_max,
        codec=config.codec,
    )


def create_from_wire(message: CreateStream) -> StreamConfig:
    """Raises InvalidRequest for values out of range, ValueError for an unknown durability."""
    return StreamConfig(
        shards=message.shards,
        retention_hours=message.retention_hours,
        retention_bytes=message.retention_bytes,
        durability=Durability(message.durability),
        record_bytes_max=message.record_bytes_max,
        codec=message.codec,
    )


def alter_to_wire(
    name: str, retention_hours: int | None, retention_bytes: int | Unchanged | None, record_bytes_max: int | None
) -> AlterStream:
    """Raises InvalidRequest for values out of range."""
    if retention_bytes is UNCHANGED:
        message = AlterStream(name, retention_hours, record_bytes_max=record_bytes_max)
    else:
        message = AlterStream(name, retention_hours, retention_bytes, record_bytes_max)
        StreamConfig(retention_bytes=retention_bytes)      # 0 would be taken for something else
    altered(StreamConfig(), message)
    return message


def altered(config: StreamConfig, message: AlterStream) -> StreamConfig:
    """The settings of a stream with what the message changes. Raises InvalidRequest."""
    hours, record_bytes_max = message.retention_hours, message.record_bytes_max
    return replace(
        config,
        retention_hours=config.retention_hours if hours is None else hours,
        retention_bytes=config.retention_bytes if message.retention_bytes == 0 else message.retention_bytes,
        record_bytes_max=config.record_bytes_max if record_bytes_max is None else record_bytes_max,
    )


def split_to_wire(name: str, ordinal: int, at: int | None, *, wait: bool = True) -> SplitShard:
    """Raises InvalidRequest for what is no hash key."""
    if at is not None and not 0 <= at < HASH_KEYS:
        raise InvalidRequest(
            f"{at} is not a hash key", try_="hash keys are 0 to 2**128 - 1", field="at", value=str(at)[:50]
        )
    return SplitShard(name, ordinal, None if at is None else hash_to_wire(at), wait)


def hash_to_wire(key: int) -> bytes:
    """A hash key, or the end of a range of them."""
    return key.to_bytes(_HASH_BYTES, "big")


def position_to_wire(position: Position) -> tuple[str, int]:
    """(kind, value) as ResolvePosition and JoinApplication carry it."""
    match position:
        case TrimHorizon():
            return "trim_horizon", 0
        case Latest():
            return "latest", 0
        case AtSequence(sequence):
            return "at_sequence", sequence
        case AfterSequence(sequence):
            return "after_sequence", sequence
        case AtTime(time_ms):
            return "at_time", time_ms


def failure_to_wire(error: BaseException) -> Failure:
    """What the peer is told. An error that is not ours is a defect: its text stays here."""
    if not isinstance(error, StreamkitError):
        error = InternalError("this is a defect in streamkit; your data was not changed", kind=type(error).__name__)
    return Failure(error.code, str(error), error.try_, {key: _plain(value) for key, value in error.facts.items()})


def failure_from_wire(failure: Failure) -> StreamkitError:
    facts = {key: value for key, value in failure.facts.items() if key not in ("message", "try_", "self")}
    return from_code(failure.code, failure.message, failure.try_, facts)


def _plain(value: object) -> Any:
    # Facts are names and numbers; anything richer travels as its text. msgpack's integers end at 64 bits.
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if value is None or isinstance(value, str | int | float | bytes):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
