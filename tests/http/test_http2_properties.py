"""However the bytes of HTTP/2 are cut, the same requests come out."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.test_http1_properties import cut
from tests.http.worlds import World, answers, spoken

paths = st.text("abc/?=", max_size=10).map("/".__add__)
requests = st.lists(st.tuples(paths, st.binary(max_size=3000)), min_size=1, max_size=5)


@settings(max_examples=25)
@given(asked=requests, places=st.lists(st.integers(0, 20_000), max_size=12))
def test_requests_are_the_same_however_the_bytes_are_cut(asked, places):
    sent, client = spoken(*asked)

    async def test(world):
        peer = await world.open()
        for piece in cut(sent, places):
            peer.send(piece)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        return answers(client, peer.data)

    assert World().run(test) == {
        2 * number + 1: path.partition("?")[0].encode() + b" " + body for number, (path, body) in enumerate(asked)
    }


@settings(max_examples=25)
@given(asked=requests, at=st.integers(0, 20_000), edits=st.binary(min_size=1, max_size=8))
def test_damage_ends_the_connection_or_is_answered(asked, at, edits):
    damaged = bytearray(spoken(*asked)[0])
    at %= len(damaged)
    damaged[at : at + len(edits)] = edits

    async def test(world):
        peer = await world.open()
        peer.send(bytes(damaged))
        await asyncio.sleep(200)
        assert peer.lost, "every time-out has passed"

    World().run(test)
