"""Notes through a node: kept over restarts, changed by several clients at once, served by every node of a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streamkit.client import Client
from streamkit.client.client import AsyncClient
from streamkit.errors import InvalidRequest
from streamkit.model.note import NOTE_BYTES_MAX
from streamkit.protocol import messages as m
from tests.broker.cluster_nodes import cluster


async def add_one(client: AsyncClient, key: str) -> None:
    while True:
        value, revision = await client.read_note(key)
        if await client.swap_notes([(key, revision, str(int(value or b"0") + 1).encode())]) is not None:
            return


async def test_notes_survive_a_restart(start: Any, connect: Any) -> None:
    node = await start()
    client = await connect(node)
    large = bytes(range(256)) * (NOTE_BYTES_MAX // 256)
    revision = await client.swap_notes([("a", 0, large), ("b", 0, b"gone")])
    assert await client.swap_notes([("b", revision, None)]) is not None
    await node.stop(1)

    again = await connect(await start())
    assert await again.read_note("a") == (large, revision)
    assert await again.read_note("b") == (None, 0)


async def test_writers_at_once_lose_no_change(node: Any, connect: Any) -> None:
    clients = [await connect(node) for _ in range(3)]

    await asyncio.gather(*(add_one(client, "count") for client in clients for _ in range(20)))

    assert (await clients[0].read_note("count"))[0] == b"60"


async def test_a_list_is_as_long_as_asked_for_however_large_the_notes(client: AsyncClient) -> None:
    large = b"x" * NOTE_BYTES_MAX
    for i in range(12):
        await client.swap_notes([(f"large/{i:02}", 0, large)])
    await client.swap_notes([(f"small/{i:02}", 0, b"%d" % i) for i in range(30)])

    listed = await client.list_notes("large/")
    assert [key for key, _, _ in listed] == [f"large/{i:02}" for i in range(12)]
    assert all(value == large and revision for _, value, revision in listed)
    assert [note.value for note in await client.list_notes("small/", after="small/03", count_max=2)] == [b"4", b"5"]
    assert [len(await client.list_notes("small/", count_max=count)) for count in (0, 1, 30, 31)] == [0, 1, 30, 30]
    assert len(await client.list_notes("")) == 42


async def test_what_is_no_note_is_refused_here_and_there(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest):
        await client.swap_notes([("a", 0, bytes(NOTE_BYTES_MAX + 1))])
    with pytest.raises(InvalidRequest):
        await client.read_note("")
    with pytest.raises(InvalidRequest):
        await client.list_notes("\n")
    for message in (
        m.ReadNote("\0"), m.ListNotes("\0"), m.ListNotes("", "\0"), m.SwapNotes(()),
        m.SwapNotes((m.NoteSwap("a", 1 << 63, b""),)), m.SwapNotes((m.NoteSwap("a", 0, bytes(NOTE_BYTES_MAX + 1)),)),
    ):
        with pytest.raises(InvalidRequest):
            await client.call(message)


async def test_the_sync_client_has_them_too(node: Any) -> None:
    def work() -> None:
        with Client(node.addresses.native) as client:
            revision = client.swap_notes([("a", 0, b"1")])
            assert client.read_note("a") == (b"1", revision)
            assert client.list_notes("") == [("a", b"1", revision)]

    await asyncio.get_running_loop().run_in_executor(None, work)


async def test_every_node_of_a_cluster_serves_them_also_while_one_is_down(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client("a") as first, nodes.client("b") as second:
        revision = await first.swap_notes([("a", 0, b"1")])
        assert await second.read_note("a") == (b"1", revision)
        assert await second.swap_notes([("a", 0, b"2")]) is None
        await asyncio.gather(*(add_one(client, "count") for client in (first, second) for _ in range(10)))
        await nodes.stop("c")
        assert await first.list_notes("count") == [("count", b"20", (await second.read_note("count"))[1])]
