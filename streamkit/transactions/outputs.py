"""What a transaction puts, as it is decided and kept: sealed batches with their numbers, by shard.

    ["v1" as 1, producer id, producer epoch, [[stream, stream's creation, [[shard uuid, [batch, batch …]] …]] …]]

msgpack arrays; fields are only added at the end. Batches are as they go to the shard.
"""

from __future__ import annotations

import msgspec

from streamkit.errors import DataError

VERSION = 1


class ShardOutputs(msgspec.Struct, array_like=True, frozen=True):
    """Batches of one shard, in order; their producer sequences follow each other."""

    shard: bytes
    batches: tuple[bytes, ...]


class StreamOutputs(msgspec.Struct, array_like=True, frozen=True):
    """created_ms: of the stream; one of the same name that was made later is another."""

    stream: str
    created_ms: int
    shards: tuple[ShardOutputs, ...]


class Outputs(msgspec.Struct, array_like=True, frozen=True):
    """All of a transaction, under one producer identity."""

    version: int
    producer_id: int
    producer_epoch: int
    streams: tuple[StreamOutputs, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Outputs)


def pack(outputs: Outputs) -> bytes:
    return _encoder.encode(outputs)


def unpack(data: bytes) -> Outputs:
    """Raises DataError for bytes that no version of this module wrote."""
    try:
        outputs: Outputs = _decoder.decode(data)
    except msgspec.MsgspecError as cause:
        raise DataError(f"{len(data)} bytes are not the outputs of a transaction: {cause}",
                        try_="upgrade this side", reason=str(cause)) from cause
    if outputs.version != VERSION:
        raise DataError(f"outputs of version {outputs.version}; this build knows {VERSION}",
                        try_="upgrade this side", reason="version")  # fmt: skip
    return outputs
