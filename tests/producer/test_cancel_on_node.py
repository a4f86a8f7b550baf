"""Outcomes on a real node, behind a line that delays, cuts, and loses what is on its way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import OutcomeUnknown, PutFailed, StreamkitError
from streamkit.model.sequence import parse_sequence_number
from streamkit.node import Node
from streamkit.producer.config import ProducerConfig
from streamkit.producer.producer import AsyncProducer
from tests.producer.test_producer_on_node import started

CLIENT = ClientConfig(connect_timeout_ms=200, request_timeout_ms=300, reconnect_first_ms=5, reconnect_most_ms=20)


class Line:
    """A port that passes bytes on to a node. answers: whether what the node says is passed on; open: anything is."""

    def __init__(self, address: str) -> None:
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.open = self.answers = True
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if not self.open:
                writer.close()
                return
            back, on = await asyncio.open_connection(self.host, self.port)
            self._writers |= {writer, on}
            await asyncio.gather(self._pass(reader, on), self._pass(back, writer, answers=True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while (data := await reader.read(1 << 16)) and self.open:
                if self.answers or not answers:
                    writer.write(data)
        writer.close()

    def cut(self) -> None:
        """Every connection, with what is on its way."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = await started(tmp_path)
    yield made
    await made.stop(1)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ProducerConfig.__init__.__kwdefaults__
    assert fields is not None
    monkeypatch.setitem(fields, "retry_first_ms", 5)
    monkeypatch.setitem(fields, "retry_most_ms", 20)


async def stored(client: AsyncClient) -> dict[tuple[str, int], bytes]:
    """What lies where."""
    found: dict[tuple[str, int], bytes] = {}
    async for record in AsyncReader("orders", start="trim_horizon", until="latest", client=client):
        found[record.shard, record.sequence] = bytes(record.data)
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_outcome_is_true_behind_a_bad_line(node: Node, seed: int) -> None:
    """Acceptance: producer 4.

    Not stored is absent, stored is there, unknown only while cut off, and asking settles that.
    """
    draw = random.Random(seed)
    near = AsyncClient(node.addresses.native)
    await near.create_stream("orders", shards=2)
    line = Line(node.addresses.native)
    far = AsyncClient(await line.start(), config=CLIENT)
    over = asyncio.Event()

    async def weather() -> None:
        while not over.is_set():
            await asyncio.sleep(draw.random() * 0.05)
            trouble = draw.choice(("cut", "answers", "closed"))
            if trouble == "cut":
                line.cut()
            elif trouble == "answers":
                line.answers = False
                await asyncio.sleep(draw.random() * 0.3)
                line.cut()
                line.answers = True
            else:
                line.open = False
                line.cut()
                await asyncio.sleep(draw.random() * 0.6)
                line.open = True

    async def outcome(handle: Any) -> Any:
        try:
            return await asyncio.wait_for(handle, 60)
        except StreamkitError as error:
            return error

    rough = asyncio.ensure_future(weather())
    producer = AsyncProducer("orders", client=far, delivery_timeout_ms=60, request_timeout_ms=200, linger_ms=1)
    put = []
    number = 0
    async with asyncio.timeout(60):
        for _ in range(40):
            for _ in range(5):
                with contextlib.suppress(StreamkitError):        # the very first put looks the stream up
                    value = b"%d" % number
                    put.append((value, await producer.put(value, key=f"k{number % 7}")))
                number += 1
            if seed == 2 and number == 100:
                await near.split_shard("orders", 0)
            await asyncio.sleep(0.02)
    outcomes = [(value, await outcome(handle)) for value, handle in put]
    over.set()
    await rough
    line.open = line.answers = True
    resolved = {value: await near.resolve(told.facts["token"]) for value, told in outcomes
                if isinstance(told, OutcomeUnknown)}  # fmt: skip
    with contextlib.suppress(PutFailed):
        await producer.close(5)
    found = await stored(near)
    await asyncio.gather(far.close(), line.close(), near.close())

    assert len(set(found.values())) == len(found)
    ordinals = {shard: int(shard.rsplit("-", 1)[1]) for shard, _ in found}
    places = {value: (ordinals[shard], sequence) for (shard, sequence), value in found.items()}
    for value, told in outcomes:
        told = resolved.get(value, told)
        number_of = getattr(told, "sequence_number", "")
        assert bool(number_of) is (value in places), (value, told)
        if number_of:
            parsed = parse_sequence_number(number_of)
            assert (parsed.ordinal, parsed.sequence) == places[value]
    assert any(isinstance(told, StreamkitError) for _, told in outcomes)
    assert places


async def test_a_producer_and_another_process_may_ask(node: Node) -> None:
    near = AsyncClient(node.addresses.native)
    await near.create_stream("orders")
    line = Line(node.addresses.native)
    far = AsyncClient(await line.start(), config=CLIENT)
    producer = AsyncProducer("orders", client=far, delivery_timeout_ms=50, request_timeout_ms=200)
    await producer.put_and_wait(b"0", key="k")
    line.answers = False
    handle = await producer.put(b"1", key="k")
    with pytest.raises(OutcomeUnknown) as unknown:
        await handle
    line.cut()
    line.answers = True

    token = unknown.value.facts["token"]
    fate = await producer.resolve(token)
    assert fate.outcome == "stored"
    assert await near.resolve(token) == fate
    assert sorted((await stored(near)).values()) == [b"0", b"1"]
    with contextlib.suppress(PutFailed):
        await producer.close(1)
    await asyncio.gather(far.close(), line.close(), near.close())
