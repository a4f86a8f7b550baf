"""What is measured, the same for every server of the API; each work checks its own answer.

    put-records        500 records of 100 bytes a request, one shard; `-8`: eight shards, `-cbor`: in CBOR
    put-records-boto3  the same through boto3, whose own cost is part of it
    put-record         one record a request on 32 connections
    get-records        up to 10,000 records a call, two readers from the first record on
    subscribe          PutRecord at a fixed rate; from the start of each put to its event at a subscriber (`pushes.py`)
    stalled            a subscriber that reads nothing, while records of 1 KiB go in (`pushes.py`)
    listing            1,000 streams of ten shards: ListStreams, and DescribeStream of each

A server that loses records when several connections put at once (moto) is given one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count as counter
from typing import Any

from benchmarks.gateway.api import (
    CBOR,
    JSON,
    Api,
    Connection,
    RequestFailed,
    failed_count,
    next_iterator,
    put_record_body,
    put_records_body,
    record_count,
)
from benchmarks.paths.processes import check
from benchmarks.peers.works import Window

SEED = 20131202
RECORD_BYTES = 100
KEY_BYTES = 9
PAYLOAD_BYTES = RECORD_BYTES + KEY_BYTES
REQUEST_RECORDS = 500
BODIES = 16                        # different ones; then they come again
GET_RECORDS = 10_000               # most that a call gives
ACTIVE_SECONDS_MAX = 20
FILL_SECONDS_MAX = 15              # slow servers have fewer records to give
FIRST_SHARD = "shardId-000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each work warms up, and ends after `seconds`. subscribe_rate: puts a second."""

    warm_seconds: float
    seconds: float
    subscribe_seconds: float
    subscribe_rate: int
    stalled_seconds: float
    stalled_warm_seconds: float
    streams: int
    get_records: int               # that are there to be got


FULL = Limits(warm_seconds=1, seconds=6, subscribe_seconds=10, subscribe_rate=200, stalled_seconds=60,
              stalled_warm_seconds=20, streams=1_000, get_records=500_000)  # fmt: skip
QUICK = Limits(warm_seconds=0.5, seconds=2, subscribe_seconds=3, subscribe_rate=200, stalled_seconds=10,
               stalled_warm_seconds=5, streams=100, get_records=100_000)  # fmt: skip
TINY = Limits(warm_seconds=0, seconds=0.2, subscribe_seconds=0.3, subscribe_rate=50, stalled_seconds=0.5,
              stalled_warm_seconds=0.2, streams=5, get_records=1_000)  # fmt: skip

Request = Callable[[Connection, int], Awaitable[int]]      # the how manieth; returns records that were taken


class Works:
    """facts: what the server's description said: url, and perhaps connections (the most it stands)."""

    def __init__(self, facts: dict[str, Any], pids: Sequence[int], limits: Limits) -> None:
        self.api = Api(facts["url"])
        self.facts, self.limits = facts, limits
        self.window = Window(pids)
        source = random.Random(SEED)
        self.values = [source.randbytes(RECORD_BYTES) for _ in range(BODIES * REQUEST_RECORDS)]
        self.keys = [f"key-{i:05d}" for i in range(REQUEST_RECORDS)]

    def connections(self, wanted: int) -> int:
        return min(wanted, int(self.facts.get("connections", wanted)))

    # -- puts ----------------------------------------------------------------------------------------------

    async def put_records(self) -> dict[str, Any]:
        return await self._put_records("put-records", 1, JSON)

    async def put_records_shards(self) -> dict[str, Any]:
        return await self._put_records("put-records-8", 8, JSON)

    async def put_records_cbor(self) -> dict[str, Any]:
        return await self._put_records("put-records-cbor", 1, CBOR)

    async def _put_records(self, stream: str, shards: int, form: str) -> dict[str, Any]:
        requests = self._requests(stream, form)

        async def put(connection: Connection, i: int) -> int:
            body = await connection.ask(requests[i % BODIES])
            return REQUEST_RECORDS - failed_count(body, cbor=form == CBOR)

        await self.create(stream, shards)
        return await self._closed_loop(put, 8)

    def _requests(self, stream: str, form: str = JSON) -> list[bytes]:
        found = []
        for at in range(0, len(self.values), REQUEST_RECORDS):
            values = self.values[at : at + REQUEST_RECORDS]
            body = put_records_body(stream, values, self.keys, cbor=form == CBOR)
            found.append(self.api.request("PutRecords", body, form))
        return found

    async def put_record(self) -> dict[str, Any]:
        requests = [
            self.api.request("PutRecord", put_record_body("put-record", value, key))
            for value, key in zip(self.values, self.keys * BODIES, strict=True)
        ]

        async def put(connection: Connection, i: int) -> int:
            body = await connection.ask(requests[i % len(requests)])
            if b"SequenceNumber" not in body:
                raise RequestFailed("an answer to PutRecord without SequenceNumber")
            return 1

        await self.create("put-record", 1)
        return await self._closed_loop(put, 32)

    async def put_records_boto3(self) -> dict[str, Any]:
        """Four threads, as an application would have; what boto3 itself costs is in the client's CPU."""
        client = boto3_client(self.facts["url"])
        chunks = [
            [{"Data": v, "PartitionKey": k} for v, k in zip(self.values[at : at + REQUEST_RECORDS], self.keys,
                                                             strict=True)]
            for at in range(0, len(self.values), REQUEST_RECORDS)
        ]  # fmt: skip
        await self.create("put-records-boto3", 1)
        threads = self.connections(4)
        latencies: list[float] = []

        def put_until(deadline: float, first: int) -> int:
            taken = 0
            for i in counter(first):
                began = time.perf_counter()
                answer = client.put_records(StreamName="put-records-boto3", Records=chunks[i % BODIES])
                latencies.append(time.perf_counter() - began)
                taken += REQUEST_RECORDS - int(answer["FailedRecordCount"])
                if time.perf_counter() >= deadline:
                    return taken
            raise AssertionError("counting has no end")

        async def all_threads(pool: ThreadPoolExecutor, seconds: float) -> int:
            loop, deadline = asyncio.get_running_loop(), time.perf_counter() + seconds
            return sum(await asyncio.gather(*(
                loop.run_in_executor(pool, put_until, deadline, i) for i in range(threads)
            )))  # fmt: skip

        with ThreadPoolExecutor(threads) as pool:
            warmed = await all_threads(pool, self.limits.warm_seconds)
            latencies.clear()
            self.window.start()
            taken = await all_threads(pool, self.limits.seconds)
        result = self.window.stop(taken, taken * PAYLOAD_BYTES)
        client.close()
        said = await self._all_are_there("put-records-boto3", warmed + taken)
        return {**result, "connections": threads, "latencies_ms": quantiles(latencies), "checked": said}

    async def _closed_loop(self, request: Request, wanted: int) -> dict[str, Any]:
        """As many connections as wanted, each with one request under way, for the time of the limits."""
        connections = await self.api.connect(self.connections(wanted))
        numbers = counter()
        latencies: list[float] = []

        async def one(connection: Connection, deadline: float) -> int:
            taken = 0
            while True:
                began = time.perf_counter()
                taken += await request(connection, next(numbers))
                ended = time.perf_counter()
                latencies.append(ended - began)
                if ended >= deadline:
                    return taken

        async def every(seconds: float) -> int:
            deadline = time.perf_counter() + seconds
            return sum(await asyncio.gather(*(one(connection, deadline) for connection in connections)))

        warmed = await every(self.limits.warm_seconds)
        latencies.clear()
        self.window.start()
        taken = await every(self.limits.seconds)
        result = self.window.stop(taken, taken * PAYLOAD_BYTES)
        for connection in connections:
            connection.close()
        return {
            **result, "requests": len(latencies), "connections": len(connections), "warmed": warmed,
            "latencies_ms": quantiles(latencies), "checked": f"{taken:,} acknowledged",
        }  # fmt: skip

    # -- gets ----------------------------------------------------------------------------------------------

    async def get_records(self) -> dict[str, Any]:
        """Two readers, each from the first record to the last and again from the first; each round is counted."""
        requests = self._requests("get-records")
        await self.create("get-records", 1)
        readers = await self.api.connect(self.connections(2))
        put, began = 0, time.perf_counter()
        while put < self.limits.get_records and time.perf_counter() - began < FILL_SECONDS_MAX:
            body = await readers[0].ask(requests[put // REQUEST_RECORDS % BODIES])
            check(failed_count(body) == 0, "a record was refused")
            put += REQUEST_RECORDS
        latencies: list[float] = []

        async def read(connection: Connection, deadline: float) -> int:
            total = 0
            while time.perf_counter() < deadline:
                position, came = await self.first_iterator(connection, "get-records"), 0
                while came < put and time.perf_counter() < deadline:
                    began = time.perf_counter()
                    body = await connection.ask(
                        self.api.request("GetRecords", {"ShardIterator": position, "Limit": GET_RECORDS})
                    )
                    latencies.append(time.perf_counter() - began)
                    count = record_count(body)
                    check(count > 0, f"{came} of {put} records came, and then none")
                    position, came = next_iterator(body), came + count
                check(came <= put, f"{came} records came, {put} were put")
                total += came
            return total

        async def every(seconds: float) -> int:
            deadline = time.perf_counter() + seconds
            return sum(await asyncio.gather(*(read(connection, deadline) for connection in readers)))

        whole = await self._all_are_there("get-records", put)
        await every(self.limits.warm_seconds)
        latencies.clear()
        self.window.start()
        total = await every(max(self.limits.seconds, 0.5))
        result = self.window.stop(total, total * PAYLOAD_BYTES)
        for connection in readers:
            connection.close()
        return {**result, "requests": len(latencies), "connections": len(readers),
                "latencies_ms": quantiles(latencies), "checked": whole}  # fmt: skip

    async def _all_are_there(self, stream: str, put: int) -> str:
        """Read from the first record on, every record that was acknowledged is there."""
        (reader,) = await self.api.connect(1)
        position, came = await self.first_iterator(reader, stream), 0
        while came < put:
            body = await reader.ask(self.api.request("GetRecords", {"ShardIterator": position, "Limit": GET_RECORDS}))
            count = record_count(body)
            check(count > 0, f"{came} of {put} records came, and then none")
            position, came = next_iterator(body), came + count
        reader.close()
        check(came == put, f"{came} records came, {put} were put")
        return f"all {put:,} were read back"

    async def first_iterator(self, connection: Connection, stream: str) -> str:
        answer = await connection.call(self.api, "GetShardIterator", StreamName=stream, ShardId=FIRST_SHARD,
                                       ShardIteratorType="TRIM_HORIZON")  # fmt: skip
        return str(answer["ShardIterator"])

    # -- streams -------------------------------------------------------------------------------------------

    async def create(self, stream: str, shards: int) -> None:
        (connection,) = await self.api.connect(1)
        await connection.call(self.api, "CreateStream", StreamName=stream, ShardCount=shards)
        await self.active(connection, stream)
        connection.close()

    async def active(self, connection: Connection, stream: str) -> dict[str, Any]:
        deadline = time.monotonic() + ACTIVE_SECONDS_MAX
        while time.monotonic() < deadline:
            found: dict[str, Any] = await connection.call(self.api, "DescribeStream", StreamName=stream)
            if found["StreamDescription"]["StreamStatus"] == "ACTIVE":
                return found
            await asyncio.sleep(0.02)
        raise RequestFailed(f"{stream} is not active")

    async def listing(self) -> dict[str, Any]:
        """Names page by page, and each stream described with its shards, on eight connections."""
        connections = await self.api.connect(self.connections(8))
        names = [f"listing-{i:04d}" for i in range(self.limits.streams)]

        async def each(work: Callable[[Connection, str], Awaitable[Any]], names: Sequence[str]) -> list[Any]:
            left = iter(names)

            async def one(connection: Connection) -> list[Any]:
                return [await work(connection, name) for name in left]

            return [found for some in await asyncio.gather(*map(one, connections)) for found in some]

        async def create(connection: Connection, name: str) -> None:
            await connection.call(self.api, "CreateStream", StreamName=name, ShardCount=10)
            await self.active(connection, name)

        async def describe(connection: Connection, name: str) -> bytes:
            return await connection.ask(self.api.request("DescribeStream", {"StreamName": name}))

        began = time.perf_counter()
        await each(create, names)
        created_seconds = time.perf_counter() - began
        await each(describe, names[: len(names) // 10])
        self.window.start()
        found = [name for name in await self._list(connections[0]) if name.startswith("listing-")]
        described = await each(describe, found)
        result = self.window.stop(len(described), 0)
        check(sorted(found) == names, f"{len(found)} of {len(names)} streams are listed")
        shards = sum(body.count(b'"HashKeyRange"') for body in described)
        check(shards == 10 * len(names), f"{shards} of {10 * len(names)} shards are described")
        for connection in connections:
            connection.close()
        return {**result, "shards": shards, "created_seconds": created_seconds, "connections": len(connections),
                "checked": f"{len(found):,} streams, {shards:,} shards"}  # fmt: skip

    async def _list(self, connection: Connection) -> list[str]:
        names: list[str] = []
        while True:
            members = {"Limit": 1_000, **({"ExclusiveStartStreamName": names[-1]} if names else {})}
            answer = await connection.call(self.api, "ListStreams", **members)
            names += answer["StreamNames"]
            if not answer["HasMoreStreams"]:
                return names


def boto3_client(url: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "kinesis", endpoint_url=url, region_name="us-east-1", aws_access_key_id="bench",
        aws_secret_access_key="bench", config=Config(max_pool_connections=16, retries={"max_attempts": 1}),
    )  # fmt: skip


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1_000 for name, q in places.items()}
