"""SubscribeToShard, measured: how soon a put is an event at the client, and what a client that stops reading costs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import time
from itertools import count as counter
from typing import Any, cast

import httptools

from benchmarks.gateway.api import Api, Connection, RequestFailed, failed_count, put_record_body, put_records_body
from benchmarks.gateway.works import FIRST_SHARD, RECORD_BYTES, REQUEST_RECORDS, Works, quantiles
from benchmarks.paths.processes import check, status_kib

STALLED_BYTES = 1_024                  # of a record
STALLED_REQUESTS = 10                  # PutRecords a second, of 500 records: about 5 MB/s
_DATA = re.compile(rb'"Data":"([^"]*)"')


class Subscriber(asyncio.Protocol):
    """Collects when each record came. Records begin with their number, in eight digits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = b""
        self.ready = self._loop.create_future()
        self.came: dict[int, float] = {}
        self._wanted, self._all_came = -1, asyncio.Event()

    async def all_came(self, count: int, seconds_max: float) -> None:
        """Until so many records have come, or time is up."""
        self._wanted = count
        if len(self.came) < count:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_came.wait(), seconds_max)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() != 200 and not self.ready.done():
            self.ready.set_exception(RequestFailed(f"{self._parser.get_status_code()} to SubscribeToShard"))

    def on_body(self, body: bytes) -> None:
        self._buffer += body
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if len(self._buffer) < size:
                return
            self._event(self._buffer[:size])
            self._buffer = self._buffer[size:]

    def _event(self, event: bytes) -> None:
        now = time.perf_counter()
        if b"initial-response" in event and not self.ready.done():
            self.ready.set_result(None)
        for data in _DATA.findall(event):
            self.came[int(base64.b64decode(data)[:8])] = now
        if len(self.came) == self._wanted:
            self._all_came.set()


async def register(works: Works, connection: Connection, stream: str) -> str:
    """A consumer of the stream, ready to subscribe; its ARN."""
    described = await works.active(connection, stream)
    answer = await connection.call(
        works.api, "RegisterStreamConsumer", StreamARN=described["StreamDescription"]["StreamARN"], ConsumerName="bench"
    )
    arn = str(answer["Consumer"]["ConsumerARN"])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = await connection.call(works.api, "DescribeStreamConsumer", ConsumerARN=arn)
        if found["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE":
            return arn
        await asyncio.sleep(0.02)
    raise RequestFailed("the consumer is not active")


def subscription(api: Api, arn: str) -> bytes:
    return api.request(
        "SubscribeToShard", {"ConsumerARN": arn, "ShardId": FIRST_SHARD, "StartingPosition": {"Type": "LATEST"}}
    )


async def subscribe(works: Works) -> dict[str, Any]:
    """From when a PutRecord is about to be sent to when its event is there, at a fixed rate.

    What the client's own timer is late is not the server's, and not counted.
    """
    limits, api, loop = works.limits, works.api, asyncio.get_running_loop()
    await works.create("subscribe", 1)
    connections = await api.connect(16)
    arn = await register(works, connections[0], "subscribe")
    transport, subscriber = await loop.create_connection(Subscriber, api.host, api.port)
    transport.write(subscription(api, arn))
    await asyncio.wait_for(subscriber.ready, 10)
    rate = limits.subscribe_rate
    warm = int(rate * limits.warm_seconds)
    count = warm + max(1, int(rate * limits.subscribe_seconds))
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for each in connections:
        free.put_nowait(each)
    sent: dict[int, float] = {}
    acknowledged: dict[int, float] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def put(i: int) -> None:
        sent[i] = time.perf_counter()              # a put that waits for a free connection is late by that, too
        value = f"{i:08d}".encode() + bytes(RECORD_BYTES - 8)
        request = api.request("PutRecord", put_record_body("subscribe", value, works.keys[i % REQUEST_RECORDS]))
        connection = await free.get()
        await connection.ask(request)
        acknowledged[i] = time.perf_counter()
        free.put_nowait(connection)

    began = time.perf_counter()
    for i in range(count):
        if i == warm:
            works.window.start()
        due = began + i / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.add(loop.create_task(put(i)))
    await asyncio.gather(*tasks)
    await subscriber.all_came(count, 10)
    result = works.window.stop(count - warm, (count - warm) * RECORD_BYTES)
    transport.abort()
    check(len(subscriber.came) == count, f"{len(subscriber.came)} of {count} records were pushed")
    pushed = [subscriber.came[i] - sent[i] for i in range(warm, count)]
    puts = [acknowledged[i] - sent[i] for i in range(warm, count)]
    own = quantiles(puts)
    said = f"{count - warm:,} events, at {rate}/s; puts acknowledged in {own['p50']:.2f} / {own['p99']:.2f} ms"
    return {**result, "rate": rate, "latencies_ms": quantiles(pushed), "put_latencies_ms": own, "checked": said}


async def stalled(works: Works) -> dict[str, Any]:
    """Resident memory once the same puts have warmed the server up, and the most it was while nobody read."""
    limits, api, loop = works.limits, works.api, asyncio.get_running_loop()
    await works.create("stalled", 1)
    (connection, other) = await api.connect(2)
    arn = await register(works, other, "stalled")
    values = [value * 11 for value in works.values[:REQUEST_RECORDS]]
    body = put_records_body("stalled", [value[:STALLED_BYTES] for value in values], works.keys)
    request = api.request("PutRecords", body)

    async def put_for(seconds: float) -> tuple[int, list[int]]:
        began, taken, memory_kib = time.perf_counter(), 0, [resident_kib(works)]
        for i in counter():
            due = began + i / STALLED_REQUESTS
            if due - began >= seconds:
                return taken, memory_kib
            await asyncio.sleep(max(0, due - time.perf_counter()))
            taken += REQUEST_RECORDS - failed_count(await connection.ask(request))
            if i % STALLED_REQUESTS == 0:
                memory_kib.append(resident_kib(works))
        raise AssertionError("counting has no end")

    await put_for(limits.stalled_warm_seconds)
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    stuck.setblocking(False)
    await loop.sock_connect(stuck, (api.host, api.port))
    await loop.sock_sendall(stuck, subscription(api, arn))
    first = await asyncio.wait_for(loop.sock_recv(stuck, 12), 10)
    check(first == b"HTTP/1.1 200", f"the subscription was answered with {first!r}")
    works.window.start()
    before = resident_kib(works)
    taken, memory_kib = await put_for(limits.stalled_seconds)
    result = works.window.stop(taken, taken * STALLED_BYTES)
    stuck.close()
    grown = (max(memory_kib) - before) / 1_024
    put_mib = taken * STALLED_BYTES / 2**20
    # What a server that kept everything would have grown by is some three times what was put.
    check(grown < max(64, put_mib / 4), f"memory grew by {grown:.0f} MiB while {put_mib:.0f} MiB were put")
    return {**result, "before_mib": before / 1_024, "grown_mib": grown, "put_mib": put_mib,
            "end_mib": memory_kib[-1] / 1_024, "checked": f"{put_mib:,.0f} MiB put, none of it read"}  # fmt: skip


def resident_kib(works: Works) -> int:
    return sum(status_kib(pid, "VmRSS") for pid in works.window.pids)


WORKS = {
    "put-records": Works.put_records,
    "put-records-8": Works.put_records_shards,
    "put-records-cbor": Works.put_records_cbor,
    "put-records-boto3": Works.put_records_boto3,
    "put-record": Works.put_record,
    "get-records": Works.get_records,
    "subscribe": subscribe,
    "stalled": stalled,
    "listing": Works.listing,
}
