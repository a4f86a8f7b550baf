"""Numbers of the application: what a named producer put before is not stored again, across restarts and kills."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from streamkit.client.client import AsyncClient
from streamkit.errors import InvalidRequest, InvalidUse, ProducerFenced
from streamkit.model.note import Note
from streamkit.model.stream import StreamConfig
from streamkit.node import Node
from streamkit.producer.producer import AsyncProducer, Producer
from tests.producer.test_producer_on_node import node, read_all

__all__ = ["node"]


async def stored(client: AsyncClient) -> list[bytes]:
    return [data for _, data in (await read_all(client, "orders")).values()]


async def test_a_file_is_copied_once_though_the_copier_is_killed_again_and_again(node: Node, tmp_path: Path) -> None:
    """Acceptance: producer 7. kill -9 at random points, splits and a merge between: each line once, in order."""
    lines = 5_000
    (tmp_path / "lines").write_bytes(b"".join(b"line %d\n" % i for i in range(lines)))
    draw = random.Random(7)
    kills = 0
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=2))
        async with asyncio.timeout(120):
            while True:
                copier = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.producer.copying", node.addresses.native, f"{tmp_path}/lines", "20",
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                assert copier.stdout is not None
                said = b""
                for _ in range(draw.choice((1, 2, 5, 10, 20, 40))):
                    said = await copier.stdout.readline() or said
                if said == b"copied\n":
                    break
                copier.kill()
                await copier.communicate()
                kills += 1
                if kills in (3, 6):
                    await client.split_shard("orders", kills // 6)
                if kills == 9:
                    await client.scale_stream("orders", 2)
            await copier.communicate()
        found = await read_all(client, "orders")
        assert kills > 9
    assert sorted(data for _, data in found.values()) == sorted(b"line %d\n" % i for i in range(lines))
    places = {int(data.split()[1]): number for number, (_, data) in found.items()}
    for key in range(23):                  # sequence numbers of one key grow, across splits, too
        numbers = [int(places[line]) for line in range(key, lines, 23)]
        assert numbers == sorted(numbers)


async def test_a_producer_that_was_closed_goes_on_exactly_there(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=4))
        async with AsyncProducer("orders", client=client, name="importer", codec="bytes") as first:
            assert await first.last_app_seq("a") is None
            for i in range(10):
                await first.put(b"a%d" % i, key=f"k{i}", app_seq=i * 100, channel="a")
            await first.put(b"b", app_seq=7, channel="b")
            await first.flush()
            assert await first.last_app_seq("a") == 900
        async with AsyncProducer("orders", client=client, name="importer", codec="bytes") as second:
            assert [await second.last_app_seq(channel) for channel in ("a", "b", "c")] == [900, 7, None]
            again = await second.put_and_wait(b"a9", key="k9", app_seq=900, channel="a")
            assert again.duplicate
            assert again.sequence_number == ""
            await second.put_and_wait(b"a10", key="k0", app_seq=1000, channel="a")
        assert sorted(await stored(client)) == sorted([*(b"a%d" % i for i in range(11)), b"b"])


async def test_old_notes_do_not_hide_what_is_stored(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may answer with what it held a moment ago."""
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=2))
        old: list[list[Note]] = [[]]
        for number in range(3):
            async with AsyncProducer("orders", client=client, name="importer", codec="bytes") as producer:
                await producer.put_and_wait(b"%d" % number, key="k", app_seq=number)
            old.append(await client.list_notes("app-seq/"))
        list_notes = client.list_notes

        async def lagging(prefix: str, **how: Any) -> list[Note]:
            return old.pop(0) if old else await list_notes(prefix, **how)

        monkeypatch.setattr(client, "list_notes", lagging)
        async with AsyncProducer("orders", client=client, name="importer", codec="bytes") as last:
            assert await last.last_app_seq() == 2
            assert (await last.put_and_wait(b"2", key="k", app_seq=2)).duplicate
        assert old == []
        assert await stored(client) == [b"0", b"1", b"2"]


async def test_what_was_stored_and_never_noted_is_found_in_the_log(node: Node) -> None:
    """An instance that is shut out while it has notes to write: its records are known, with their places."""
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=3))
        elder = AsyncProducer("orders", client=client, name="importer", codec="bytes")
        results = [
            await elder.put_and_wait(b"%d" % i, key=f"k{i % 7}", app_seq=i) for i in range(50) if i % 3
        ]
        newer = AsyncProducer("orders", client=client, name="importer", codec="bytes")
        settled = await newer.last_app_seq()
        assert settled is None or settled < 50
        handles = [await newer.put(b"%d" % i, key=f"k{i % 7}", app_seq=i) for i in range(60)]
        found = [await handle for handle in handles]
        # A number that the elder left out and the newer puts is new; the others are where the elder put them.
        assert [result.sequence_number for result in found if result.duplicate and result.sequence_number] == [
            result.sequence_number for i, result in zip((i for i in range(50) if i % 3), results, strict=True)
            if i > (-1 if settled is None else settled)
        ]  # fmt: skip
        with pytest.raises(ProducerFenced):
            await elder.put_and_wait(b"late", key="k", app_seq=70)
        await elder.close()
        await newer.close()
        values = await stored(client)
        assert len(values) == len(set(values))
        assert await reopened(client) == 59


async def reopened(client: AsyncClient) -> int | None:
    async with AsyncProducer("orders", client=client, name="importer", codec="bytes") as producer:
        return await producer.last_app_seq()


async def test_numbers_that_do_not_grow_are_refused(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders")
        async with AsyncProducer("orders", client=client, name="importer", linger_ms=1000) as producer:
            await producer.put(b"1", key="k", app_seq=5)
            handle = await producer.put(b"2", key="k", app_seq=9)
            for wrong in (7, 9, -1, 1 << 64):
                with pytest.raises(InvalidRequest):
                    await producer.put(b"3", key="k", app_seq=wrong)
            with pytest.raises(InvalidRequest):
                await producer.put(b"3", key="k", app_seq=10, channel="c" * 257)
            with pytest.raises(InvalidRequest):
                await producer.put(b"3", key="k", app_seq=10, headers={"app-seq": "mine"})
            await handle
            await producer.put(b"3", key="k", app_seq=10, headers={"mine": "kept"})
        async with AsyncProducer("orders", client=client) as nameless:
            with pytest.raises(InvalidUse):
                await nameless.put(b"1", key="k", app_seq=1)
        assert sorted(await stored(client)) == [b"1", b"2", b"3"]


async def test_the_same_for_threads(node: Node) -> None:
    def copy(first: int, last: int) -> int | None:
        with Producer("orders", url=node.addresses.native, name="importer", codec="bytes") as producer:
            for i in range(first, last):
                producer.put(b"%d" % i, key="k", app_seq=i, channel="c")
            producer.flush()
            return producer.last_app_seq("c")

    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders")
        assert await asyncio.to_thread(copy, 0, 10) == 9
        assert await asyncio.to_thread(copy, 5, 20) == 19
        assert sorted(await stored(client), key=int) == [b"%d" % i for i in range(20)]
