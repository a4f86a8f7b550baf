"""A node in this process and the Kinesis API over it, asked without a socket and on a clock that can be turned."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import cbor2

from streamkit.client.client import AsyncClient
from streamkit.faces import client_of
from streamkit.gateway.app import Gateway
from streamkit.gateway.kinesis.config import KinesisConfig
from streamkit.gateway.kinesis.names import Place
from streamkit.gateway.kinesis.notes import Pending, StreamNote, encode_note
from streamkit.gateway.kinesis.service import Kinesis
from streamkit.gateway.wire import decode_cbor
from streamkit.http.exchange import Response
from streamkit.metadata.memory_store import MemoryStore
from streamkit.node import Node, NodeOptions
from streamkit.runtime.real import real_runtime
from streamkit.security.credentials import Authenticator
from tests.broker.conftest import SMALL, config
from tests.gateway.calling import CBOR, JSON, headers
from tests.gateway.calling import request as unsigned

ACCOUNT, REGION = "000000000000", "us-east-1"
SECONDS = 20.0
HASH_KEYS = 1 << 128


class TurnedClock:
    """The machine's clock, set ahead by `ahead_ms`."""

    def __init__(self) -> None:
        self.real = real_runtime().clock
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return self.real.now_ms() + self.ahead_ms

    def monotonic_ms(self) -> int:
        return self.real.monotonic_ms() + self.ahead_ms


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, name: str, message: str, status: int) -> None:
        super().__init__(f"{status} {name}: {message}")
        self.name = name
        self.message = message
        self.status = status


class Desk:
    """await desk("CreateStream", StreamName="s"): the reply, decoded; raises Refusal.

    The format is CBOR when cbor is set, where blobs are bytes and timestamps milliseconds.
    """

    def __init__(self, client: AsyncClient, kinesis: Kinesis, clock: TurnedClock) -> None:
        self.client = client
        self.kinesis = kinesis
        self.clock = clock
        self.cbor = False
        self.region = REGION
        self.account = ""
        self.gateway = Gateway([kinesis.service], Authenticator(), clock, client.runtime.random)

    def as_caller(self, account: str = "", region: str = REGION, *, cbor: bool = False) -> Desk:
        other = Desk(self.client, self.kinesis, self.clock)
        other.account, other.region, other.cbor = account, region, cbor
        return other

    async def send(self, operation: str, body: bytes | dict[str, Any], content_type: str = "") -> Response:
        asked = unsigned(operation, body, content_type or (CBOR if self.cbor else JSON))
        scope = f"Credential={self.account or 'AK'}/20231114/{self.region}/"
        asked.headers["authorization"] = asked.headers["authorization"].replace(
            "Credential=AK/20231114/us-east-1/", scope
        )
        async with asyncio.timeout(SECONDS):
            return await self.gateway.handle(asked)

    async def __call__(self, operation: str, **members: Any) -> Any:
        body = cbor2.dumps(members) if self.cbor else members
        response = await self.send(operation, body)
        assert response.stream is None, "ask for streams with `subscribe`"
        return self.read(response)

    def read(self, response: Response) -> Any:
        told = None
        if response.body:
            is_cbor = "cbor" in headers(response)["content-type"]
            told = decode_cbor(bytes(response.body)) if is_cbor else json.loads(bytes(response.body))
        if response.status != 200:
            error = told["__type"]
            assert headers(response)["x-amzn-errortype"] == error
            raise Refusal(error, told.get("message") or told.get("Message") or "", response.status)
        return told

    # -- in short ------------------------------------------------------------------------------------------

    async def make(self, name: str = "s", shards: int = 1, **more: Any) -> str:
        await self("CreateStream", StreamName=name, ShardCount=shards, **more)
        await self.until_active(name)
        return name

    async def until_active(self, name: str = "s") -> dict[str, Any]:
        async def look() -> Any:
            told = (await self("DescribeStream", StreamName=name))["StreamDescription"]
            return told if told["StreamStatus"] == "ACTIVE" else None

        return await eventually(look)

    async def put(self, *values: bytes, name: str = "s", key: str = "k", hash_key: int | None = None) -> list[str]:
        """Their sequence numbers; over CBOR, where blobs are bytes."""
        entries = [
            {"Data": each, "PartitionKey": key} | ({} if hash_key is None else {"ExplicitHashKey": str(hash_key)})
            for each in values
        ]
        told = await self._bytes()("PutRecords", StreamName=name, Records=entries)
        assert told["FailedRecordCount"] == 0
        return [each["SequenceNumber"] for each in told["Records"]]

    async def iterator(self, kind: str = "TRIM_HORIZON", shard: int = 0, *, name: str = "s", **more: Any) -> str:
        told = await self(
            "GetShardIterator", StreamName=name, ShardId=f"shardId-{shard:012d}", ShardIteratorType=kind, **more
        )
        return told["ShardIterator"]

    async def get(self, iterator: str, **more: Any) -> dict[str, Any]:
        return await self._bytes()("GetRecords", ShardIterator=iterator, **more)

    async def values(self, kind: str = "TRIM_HORIZON", shard: int = 0, *, name: str = "s", **more: Any) -> list[bytes]:
        """All that is there from that position on."""
        found: list[bytes] = []
        iterator: str | None = await self.iterator(kind, shard, name=name, **more)
        while iterator:
            part = await self.get(iterator)
            found += [each["Data"] for each in part["Records"]]
            if not part["Records"] and not part["MillisBehindLatest"]:
                break
            iterator = part.get("NextShardIterator")
        return found

    async def shards(self, name: str = "s", **more: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page = await self("ListShards", StreamName=name, **more)
        while True:
            found += page["Shards"]
            if "NextToken" not in page:
                return found
            page = await self("ListShards", NextToken=page["NextToken"])

    async def reshard(self, operation: str, name: str = "s", **more: Any) -> None:
        await self(operation, StreamName=name, **more)
        await self.until_active(name)

    async def leave_pending(self, place: Place, pending: Pending, **note: Any) -> None:
        """As a gateway that died between the note and the deed."""
        written = encode_note(StreamNote(native=place.name, pending=pending, **note))

        async def swap() -> Any:
            _, revision = await self.client.read_note(place.key)
            return await self.client.swap_notes([(place.key, revision, written)])

        await eventually(swap)                             # a change before it may be about to be settled

    def _bytes(self) -> Desk:
        return self if self.cbor else self.as_caller(self.account, self.region, cbor=True)


def place(name: str = "s") -> Place:
    return Place(ACCOUNT, REGION, name)


async def eventually(look: Callable[[], Awaitable[Any]]) -> Any:
    """What `look` finds at last; fails after SECONDS."""
    async with asyncio.timeout(SECONDS):
        while not (found := await look()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
        return found


@contextlib.asynccontextmanager
async def node_in(path: Path, *, lasting: bool = False, **flags: Any) -> AsyncIterator[Node]:
    """lasting: its metadata outlives it; otherwise they are in memory, which is quicker."""
    runtime = real_runtime()
    store = None if lasting else MemoryStore(runtime.clock)
    options = NodeOptions(listen=False, storage=SMALL, store=store)
    node = Node(config(**flags), runtime, data_dir=str(path), options=options)
    await node.start()
    try:
        yield node
    finally:
        await node.stop(0)


@contextlib.asynccontextmanager
async def desk_at(node: Node, **settings: Any) -> AsyncIterator[Desk]:
    """A gateway of its own, as every node of a cluster has one. settings: of KinesisConfig."""
    clock = TurnedClock()
    client = client_of(node)
    settings = {"lag_seconds": 1.0 if node.is_clustered else 0.0} | settings
    kinesis = await Kinesis.open(client, clock, KinesisConfig(**settings))
    try:
        yield Desk(client, kinesis, clock)
    finally:
        await kinesis.close()
        await client.close()

