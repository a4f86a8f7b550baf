"""Several nodes of a few lines each on real sockets, which agree about everything because they share one memory.

What is stored survives its node, as if it had been copied in time. Set a node's `frozen`, `kill` it, `move` a shard's
leader or the coordinator: a node that does not lead refuses as a broker does.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from streamkit._core.batch import check_batch
from streamkit.errors import NotLeader, StreamkitError, StreamNotFound
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol import messages as m
from streamkit.protocol.connection import Connection, Received, Side, State
from streamkit.protocol.conversion import failure_to_wire, stream_to_wire
from streamkit.protocol.frames import FetchFrame, PutFrame
from streamkit.runtime.real import real_runtime


class Cluster:
    """One stream, "orders". names_leaders: whether refusals say who leads."""

    def __init__(self, nodes: int = 3, shards: int = 2) -> None:
        self.network = real_runtime().network
        self.nodes = {name: Node(self, name) for name in "abcdefgh"[:nodes]}
        self.names_leaders = True
        self.coordinator = "a"
        self.logs: dict[bytes, list[bytes]] = {}
        self.first_sequences: dict[tuple[bytes, int, int], int] = {}
        self.requests: list[tuple[str, str]] = []      # (node, message)
        self.stream = StreamDescription(
            name="orders", status=StreamStatus.ACTIVE, config=StreamConfig(shards=shards), created_ms=1,
            map_version=1,
            shards=tuple(
                Shard(ordinal=i, uuid=bytes([i]) * 16, hash_start=low, hash_end=high, created_ms=1, epoch=1, leader="a")
                for i, (low, high) in enumerate(even_ranges(shards))
            ),
        )  # fmt: skip

    async def __aenter__(self) -> Cluster:
        for node in self.nodes.values():
            await node.start()
        for shard in self.stream.shards:
            self.move(shard, "a", epoch=1)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            await node.kill()

    def url(self, *names: str) -> str:
        return "streamkit://" + ",".join(self.nodes[name].address for name in names or self.nodes)

    def shard(self, uuid: bytes) -> Shard:
        return next(shard for shard in self.stream.shards if shard.uuid == uuid)

    def move(self, shard: Shard, name: str, epoch: int | None = None) -> None:
        moved = replace(self.shard(shard.uuid), leader=name, address=self.nodes[name].address if name else "",
                        epoch=epoch or self.shard(shard.uuid).epoch + 1)  # fmt: skip
        self.stream = replace(
            self.stream, shards=tuple(moved if each.uuid == shard.uuid else each for each in self.stream.shards)
        )

    def not_leader(self, leader: str, shard: str = "", epoch: int = 0) -> NotLeader:
        named = leader if self.names_leaders else ""
        address = self.nodes[named].address if named else ""
        return NotLeader("led elsewhere", shard=shard, epoch=epoch, leader=named, address=address)

    def served(self, node: str, uuid: bytes) -> list[bytes]:
        shard = self.shard(uuid)
        if shard.leader != node:
            raise self.not_leader(shard.leader, shard.id, shard.epoch)
        return self.logs.setdefault(uuid, [])

    def answer(self, node: str, message: m.Message) -> m.Message:
        self.requests.append((node, type(message).__name__))
        match message:
            case m.DescribeStream(name="orders"):
                return m.StreamDescribed(stream_to_wire(self.stream))
            case m.DescribeStream(name=name):
                raise StreamNotFound(f"no stream {name}", stream=name, near=None)
            case m.DescribeShards():
                return m.ShardsDescribed(())
            case m.DescribeNode():
                return m.NodeDescribed(node, "", True, (), 1, 1, 0, "", "")
            case m.NewProducer():
                return m.ProducerGiven(7, 0)
            case m.ResolvePosition(shard=shard, value=value):
                return m.PositionResolved(value, 0, len(self.served(node, shard)))
            case m.Checkpoint(items=items):
                if node != self.coordinator:
                    raise self.not_leader(self.coordinator)
                return m.Checkpointed(tuple("ok" for _ in items))
        raise ZeroDivisionError(type(message).__name__)


class Node:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.address = ""
        self.frozen = False
        self.alive = False
        self.ends: list[_End] = []

    async def start(self) -> None:
        self.listener = await self.cluster.network.listen(self.address or "127.0.0.1:0", lambda: _End(self))
        self.address = self.listener.address
        self.alive = True

    async def kill(self) -> None:
        if self.alive:
            self.alive = False
            await self.listener.close()
            for end in self.ends:
                end.transport.abort()
            self.ends.clear()
            await asyncio.sleep(0)


class _End(asyncio.BufferedProtocol):
    def __init__(self, node: Node) -> None:
        self.node = node
        addresses = tuple(each.address for each in node.cluster.nodes.values() if each.alive)
        self.wire = Connection(Side.BROKER, node.name, addresses=addresses)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.wire.get_buffer(sizehint)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.node.ends.append(self)

    def buffer_updated(self, count: int) -> None:
        if self.node.frozen:
            return
        for frame in self.wire.buffer_updated(count):
            try:
                self.serve(frame)
            except StreamkitError as error:
                self.wire.send(failure_to_wire(error), frame.request_id)  # type: ignore[union-attr]
        self.transport.writelines(self.wire.take())
        if self.wire.state is State.CLOSED:
            self.transport.close()

    def serve(self, frame: object) -> None:
        cluster, writer = self.node.cluster, self.wire.writer
        if isinstance(frame, PutFrame):
            log = cluster.served(self.node.name, frame.shard)
            header = check_batch(frame.batch)
            key = (frame.shard, header.producer_id, header.producer_sequence)
            duplicate = bool(header.producer_id) and key in cluster.first_sequences
            if not duplicate:
                cluster.first_sequences[key] = sum(check_batch(each).record_count for each in log)
                log.append(bytes(frame.batch))
            writer.put_ok(frame.request_id, cluster.first_sequences[key], 1_000, 1, int(duplicate))
        elif isinstance(frame, FetchFrame):
            log = cluster.served(self.node.name, frame.shard)
            writer.fetch_ok(frame.request_id, len(log), 0, len(log), len(log), log[frame.start:])
        elif isinstance(frame, Received) and frame.request_id:
            self.wire.send(cluster.answer(self.node.name, frame.message), frame.request_id)
