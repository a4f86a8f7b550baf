"""Conversations that were tampered with: the broker answers or hangs up, and stays."""

import asyncio
import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkit.protocol import messages as m
from streamkit.protocol.connection import Connection, Side
from tests.broker.conftest import batch_of


def conversation(shard):
    """What a client says: greeting, requests, puts and fetches, as one run of bytes."""
    client = Connection(Side.CLIENT, "fuzz")
    client.writer.put(1, shard.uuid, 0, batch_of(b"a" * 300, b"b"))
    client.writer.fetch(2, shard.uuid, 0, 1000, 5, 3, 4, "app")
    client.writer.message(3, m.encode(m.ListStreams()))
    client.writer.message(4, m.encode(m.Checkpoint("app", "w", (m.CheckpointItem(shard.uuid, 1, 1, 1),))))
    client.writer.message(0, m.encode(m.Goodbye("done")))
    return b"".join(map(bytes, client.take()))


CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "double", "insert"]), st.integers(0, 10_000), st.binary(max_size=8)),
    min_size=1, max_size=5,
)


def tampered(data, changes):
    data = bytearray(data)
    for kind, place, extra in changes:
        at = place % (len(data) or 1)
        if kind == "flip" and data:
            data[at] ^= (extra[:1] or b"\x01")[0] or 1
        elif kind == "cut":
            del data[at : at + 1 + len(extra)]
        elif kind == "double":
            data[at:at] = data[at : at + 40]
        else:
            data[at:at] = extra
    return bytes(data)


async def test_tampered_conversations_hurt_nobody_else(node, client):
    shard = (await client.create_stream("orders")).shards[0]
    spoken = conversation(shard)
    host, port = node.addresses.native.split(":")
    examples = []

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changes=CHANGES)
    def collect(changes):
        examples.append(tampered(spoken, changes))

    collect()
    for example in examples:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(example)
        with contextlib.suppress(ConnectionError):
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)
        writer.close()

    assert (await client.describe_node()).ready
    receipt = await client.put_batch(shard, batch_of(b"still here"))
    assert receipt.base_sequence >= 1
