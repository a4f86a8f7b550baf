"""A chain of transactions under one producer identity: each is carried out before the next one is decided.

    put, put … ──▶ seal: routed, cut into batches, numbered ──▶ decided elsewhere ──▶ carry_out ──▶ the next one
                                     └── not decided: the numbers are used by the next one

So the numbers of one chain have no holes in any shard, and a repeat is recognised by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from streamkit._core.batch import read_header
from streamkit._core.hashing import ShardTable, hash_key
from streamkit.client.client import AsyncClient
from streamkit.errors import RecordTooLarge, TransactionTooLarge
from streamkit.model.codec import Codec, find_codec
from streamkit.model.entry import (
    Headers,
    content_type_of,
    hash_key_bytes,
    pack_headers,
    payload_encoder,
    time_to_ms,
)
from streamkit.model.limits import OUTPUTS_BYTES_MAX
from streamkit.model.stream import StreamDescription
from streamkit.transactions.carrying import carry_out
from streamkit.transactions.outputs import VERSION, Outputs, ShardOutputs, StreamOutputs, pack
from streamkit.transactions.sealing import Sealable, batches_of

_RECORD_OVERHEAD_BYTES = 12


class Put(NamedTuple):
    """One record that a transaction gathered. headers: as they were given, or packed; codec: what made the payload."""

    key: str | None
    payload: bytes
    headers: Headers | bytes | None
    time_ms: int | None
    explicit_hash: bytes | None
    codec: Codec


class Gathered:
    """What one open transaction puts, by stream, in order. One thread at a time."""

    def __init__(self, codec: Codec | str = "json") -> None:
        self.puts: dict[str, list[Put]] = {}
        self.payload_bytes = 0
        self._codec = find_codec(codec)
        self._encode = payload_encoder(self._codec)

    def __len__(self) -> int:
        return sum(map(len, self.puts.values()))

    def put(
        self, stream: str, value: Any, key: str | None = None, headers: Headers | None = None,
        time: datetime | None = None, explicit_hash_key: int | None = None,
    ) -> None:
        """Raises InvalidUse, InvalidRequest for what can never be put."""
        payload = self._encode(value)
        self.payload_bytes += len(payload)
        put = Put(
            key, payload, headers, None if time is None else time_to_ms(time),
            None if explicit_hash_key is None else hash_key_bytes(explicit_hash_key), self._codec,
        )
        self.add(stream, put)

    def add(self, stream: str, put: Put) -> None:
        puts = self.puts.get(stream)
        if puts is None:
            puts = self.puts[stream] = []
        puts.append(put)

    def clear(self) -> None:
        self.puts.clear()
        self.payload_bytes = 0


class Lineage:
    """On the client's event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._identity: tuple[int, int] | None = None
        self._next: dict[bytes, int] = {}              # shard → number of the next record there
        self._streams: dict[str, StreamDescription] = {}
        self._keyless = client.runtime.random.bits(32)

    async def seal(self, gathered: Gathered) -> Outputs:
        """Raises StreamNotFound, RecordTooLarge, and what asking raises."""
        if self._identity is None:
            given = await self._client.new_producer()
            self._identity = (given.producer_id, given.producer_epoch)
        streams = []
        for name, puts in gathered.puts.items():
            stream = await self._stream(name)
            streams.append(StreamOutputs(name, stream.created_ms, tuple(self._sealed(stream, puts))))
        return Outputs(VERSION, *self._identity, tuple(streams))

    def decided(self, outputs: Outputs) -> None:
        """These numbers are used up."""
        for stream in outputs.streams:
            for each in stream.shards:
                header = read_header(each.batches[-1])
                self._next[each.shard] = header.producer_sequence + header.record_count

    async def carry_out(self, outputs: Outputs) -> None:
        """As carrying.carry_out; what moved to other shards is numbered there from now on."""
        self._next.update(await carry_out(self._client, outputs))

    async def _stream(self, name: str) -> StreamDescription:
        # Never an older map than before: batches that were moved to a child would come to lie behind later ones.
        found = await self._client.stream(name)
        known = self._streams.get(name)
        if known is not None and known.created_ms == found.created_ms and known.map_version > found.map_version:
            return known
        self._streams[name] = found
        return found

    def _sealed(self, stream: StreamDescription, puts: Sequence[Put]) -> Iterable[ShardOutputs]:
        shards = stream.shards
        table = ShardTable([(s.hash_start, s.hash_end) if s.closed_ms is None else None for s in shards])
        parts: dict[int, list[Sealable]] = {}
        record_bytes_max = stream.config.record_bytes_max
        for put in puts:
            key, explicit = (put.key or "").encode(), put.explicit_hash
            if put.key is None and explicit is None:
                self._keyless += 1
                explicit = hash_key(b"%d" % self._keyless)
            if isinstance(put.headers, bytes):
                headers = put.headers
            elif put.headers:
                headers = pack_headers(put.headers, put.codec, stream.config.codec)
            else:
                headers = content_type_of(put.codec, stream.config.codec)
            size = len(key) + len(put.payload) + len(headers) + _RECORD_OVERHEAD_BYTES
            if size > record_bytes_max:
                raise RecordTooLarge(
                    f"a record is {size} bytes; stream {stream.name} takes {record_bytes_max}",
                    try_="raise the stream's record_bytes_max, or put less at once", stream=stream.name,
                    size_bytes=size, limit_bytes=record_bytes_max,
                )
            at = table.find(explicit) if explicit is not None else table.find_key(key)
            parts.setdefault(at, []).append((key, put.payload, headers, put.time_ms, explicit))
        assert self._identity is not None, "sealed under an identity"
        for at in sorted(parts):
            shard = shards[at]
            yield ShardOutputs(shard.uuid, tuple(batches_of(
                parts[at], self._identity, self._next.get(shard.uuid, 0), stream.map_version
            )))


def packed(outputs: Outputs) -> bytes:
    """Raises TransactionTooLarge."""
    data = pack(outputs)
    if len(data) > OUTPUTS_BYTES_MAX:
        raise TransactionTooLarge(
            f"the transaction puts {len(data)} bytes, packed; at most {OUTPUTS_BYTES_MAX} are decided at once",
            try_="put less in one transaction: a smaller batch_bytes_max of the producer before, or a smaller block",
            size_bytes=len(data), limit_bytes=OUTPUTS_BYTES_MAX,
        )
    return data
