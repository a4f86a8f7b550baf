"""A broker of a few lines on a real socket: enough to hold a client to its word, and to misbehave on request."""

from __future__ import annotations

import asyncio
from typing import Any

from streamkit.errors import StreamkitError, StreamNotFound
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamDescription, StreamStatus
from streamkit.protocol import messages as m
from streamkit.protocol.connection import Connection, Received, Side, State
from streamkit.protocol.conversion import create_from_wire, failure_to_wire, stream_to_wire
from streamkit.protocol.frames import FetchFrame, PutFrame


def batch_of(value: bytes) -> bytes:
    """Bytes that framing takes for a batch: the header's magic and length are all that it looks at."""
    return b"SK\x01\x00" + (112 + len(value)).to_bytes(4, "little") + bytes(104) + value


class StandIn:
    """Streams and batches in memory. Set `silent` to answer nothing, `refuse` to answer puts with an error.

    leaving: it takes leave with its greeting.
    """

    def __init__(self) -> None:
        self.streams: dict[str, StreamDescription] = {}
        self.stored: dict[bytes, list[bytes]] = {}
        self.requests: list[str] = []
        self.ends: list[_End] = []
        self.silent = False
        self.leaving = False
        self.refuse: StreamkitError | None = None
        self.address = ""

    def factory(self) -> _End:
        return _End(self)

    async def listen(self, network: Any, address: str = "127.0.0.1:0") -> StandIn:
        self.listener = await network.listen(address, self.factory)
        self.address = self.listener.address
        return self

    async def close(self) -> None:
        await self.listener.close()
        for end in self.ends:
            end.transport.abort()
        await asyncio.sleep(0)

    def answer(self, message: m.Message) -> m.Message:
        self.requests.append(type(message).__name__)
        match message:
            case m.CreateStream(name=name):
                config = create_from_wire(message)
                shards = tuple(
                    Shard(ordinal=i, uuid=f"{name[:8]:8}{i:8}".encode(), hash_start=low, hash_end=high,
                          created_ms=1_000, leader="stand-in", address=self.address)
                    for i, (low, high) in enumerate(even_ranges(config.shards))
                )  # fmt: skip
                self.streams[name] = StreamDescription(
                    name=name, status=StreamStatus.ACTIVE, config=config, created_ms=1_000, map_version=1, shards=shards
                )
                self.stored.update((shard.uuid, []) for shard in shards)
                return m.StreamDescribed(stream_to_wire(self.streams[name]))
            case m.DescribeStream(name=name) | m.DeleteStream(name=name) if name not in self.streams:
                return failure_to_wire(
                    StreamNotFound(f'stream "{name}" does not exist', try_="streamkit stream list", stream=name)
                )
            case m.DescribeStream(name=name):
                return m.StreamDescribed(stream_to_wire(self.streams[name]))
            case m.DescribeShards(name=name):
                ends = [(shard.ordinal, len(self.stored[shard.uuid])) for shard in self.streams[name].shards]
                return m.ShardsDescribed(tuple(
                    m.ShardState(ordinal, 0, end, end, 0, None, None, end, 7.0, 7_000.0) for ordinal, end in ends
                ))  # fmt: skip
            case m.ListStreams(after=after):
                names = sorted(name for name in self.streams if name > after)
                listed = tuple(stream_to_wire(self.streams[name], with_shards=False) for name in names[:2])
                return m.StreamsListed(listed, more=len(names) > 2)
            case m.DeleteStream(name=name):
                del self.streams[name]
                return m.Done()
            case m.ResolvePosition(shard=shard, value=value):
                return m.PositionResolved(value, 0, len(self.stored[shard]))
            case m.NewProducer():
                return m.ProducerGiven(7, 1)
        return failure_to_wire(ZeroDivisionError("a defect of the stand-in"))


class _End(asyncio.BufferedProtocol):
    def __init__(self, owner: StandIn) -> None:
        self.owner = owner
        self.wire = Connection(Side.BROKER, "stand-in")
        self.get_buffer = self.wire.get_buffer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.owner.ends.append(self)

    def buffer_updated(self, count: int) -> None:
        for frame in self.wire.buffer_updated(count):
            if not self.owner.silent:
                self.serve(frame)
        if self.owner.leaving and self.wire.state is State.OPEN:
            self.wire.say_goodbye("stopping")
        self.flush()

    def flush(self) -> None:
        self.transport.writelines(self.wire.take())
        if self.wire.state is State.CLOSED:
            self.transport.close()

    def serve(self, frame: object) -> None:
        writer = self.wire.writer
        if isinstance(frame, PutFrame):
            if self.owner.refuse is not None:
                self.wire.send(failure_to_wire(self.owner.refuse), frame.request_id)
                return
            log = self.owner.stored[frame.shard]
            log.append(bytes(frame.batch))
            writer.put_ok(frame.request_id, len(log) - 1, 1_000, 1)
        elif isinstance(frame, FetchFrame):
            log = self.owner.stored[frame.shard]
            found = log[frame.start:]
            writer.fetch_ok(frame.request_id, len(log), 0, len(log), len(log), found)
        elif isinstance(frame, Received) and frame.request_id:
            self.wire.send(self.owner.answer(frame.message), frame.request_id)
