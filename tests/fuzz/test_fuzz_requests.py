"""Requests that decode and make no sense, asked of a real node: an answer or a typed refusal, never a defect."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkit._core.batch import seal
from streamkit.client.client import AsyncClient
from streamkit.errors import InternalError, StreamkitError
from streamkit.node import Node, NodeOptions
from streamkit.protocol import messages as m
from streamkit.runtime.real import real_runtime
from streamkit.transactions.outputs import Outputs, ShardOutputs, StreamOutputs, pack
from tests.broker.conftest import SMALL, batch_of, config

UUID = b"\x07" * 16                        # stands for the shard until the node has one
BATCH = seal([(b"k", b"v", b"", None, None)])
OUTPUTS = pack(Outputs(1, 5, 0, (StreamOutputs("orders", 1, (ShardOutputs(UUID, (BATCH,)),)),)))
REQUESTS: tuple[m.Message, ...] = (
    m.CreateStream("made", 1, 24, None, "fsync", 1 << 20, "json"),
    m.DescribeStream("orders"),
    m.ListStreams(),
    m.DeleteStream("made"),
    m.DescribeShards("orders"),
    m.SplitShard("made", 0, None, False),
    m.MergeShards("made", (0, 1), False),
    m.ScaleStream("made", 1, False),
    m.DescribeOperation("orders", "00" * 16, 0),
    m.DescribeTraffic(UUID),
    m.AlterStream("orders", 48, None, 1 << 20),
    m.ResolvePosition(UUID, "at_sequence", 1),
    m.ResolvePosition(UUID, "at_time", 1_700_000_000_000),
    m.NewProducer("p"),
    m.OpenProducer(UUID, "p", b"i" * 16, 1, 0),
    m.CancelBatch(UUID, 1, 0, 0, 1, 0),
    m.JoinApplication("app", "w", ("orders",), "trim_horizon"),
    m.Heartbeat("app", "w", 1, ((UUID, 1),)),
    m.Checkpoint("app", "w", (m.CheckpointItem(UUID, 1, 1, 1, {1: 1}),)),
    m.ReleaseLeases("app", "w", ((UUID, 1),)),
    m.LeaveApplication("app", "w", 1),
    m.ListApplications(),
    m.DescribeApplication("app"),
    m.DeleteApplication("app"),
    m.PauseLease("app", "w", UUID, 1, "why"),
    m.ResumeLeases("app"),
    m.HoldApplication("app", "because"),
    m.SetPositions("app", ((bytes(16), 3, 0),), False),
    m.CheckApplication("app"),
    m.CommitTransaction("app", "w", m.CheckpointItem(UUID, 1, 1, 1), OUTPUTS),
    m.CommitOutputs(b"writer", 1, 1, OUTPUTS),
    m.OutputsCarriedOut("app", ((UUID, 1, 1),)),
    m.DescribeNode(),
    m.ReadNote("made"),
    m.SwapNotes((m.NoteSwap("made", 0, b"note"), m.NoteSwap("orders", 1, None))),
    m.ListNotes("", "app", 5),
)
NUMBERS = st.sampled_from((0, 1, -1, 2, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)))
NAMES = st.sampled_from(
    ("orders", "made", "app", "w", "", "x" * 300, "a/b", "__applications", "latest", "per_shard", "at_time")
)
LEAVES: st.SearchStrategy[Any] = (
    NUMBERS | NAMES | st.sampled_from((UUID, b"", b"short", None, True, 0.5, [], {}, {"shardId-000000000000": "1"}))
    | st.text(max_size=8)
)  # fmt: skip


def places(node: Any) -> list[list[Any]]:
    """The way to every value inside."""
    steps = list(enumerate(node)) if isinstance(node, list) else list(node.items()) if isinstance(node, dict) else []
    return [[step, *rest] for step, inner in steps for rest in [[], *places(inner)]]


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    request = msgspec.msgpack.decode(m.encode(draw(st.sampled_from(REQUESTS))), strict=False)
    for _ in range(draw(st.integers(0, 2))):
        ways = [way for way in places(request) if way != [0]]
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        inner = request
        for step in way:
            inner = inner[step]
        inner[last] = copy.deepcopy(draw(LEAVES))
    return msgspec.msgpack.encode(request)


@pytest.mark.fuzz
async def test_requests_that_make_no_sense_are_answered_or_refused_typed(tmp_path: Path) -> None:
    examples: list[bytes] = []

    count = max(150, settings.default.max_examples // 4)

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(request=forged())
    def collect(request: bytes) -> None:
        examples.append(request)

    collect()
    node = Node(config(), real_runtime(), data_dir=str(tmp_path / "data"), options=NodeOptions(storage=SMALL))
    await node.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(node.stop, 1)
        client = await stack.enter_async_context(AsyncClient(node.addresses.native))
        shard = (await client.create_stream("orders")).shards[0]
        for example in examples:
            try:
                request = m.decode(example.replace(UUID, shard.uuid))
            except msgspec.MsgspecError:
                continue
            if isinstance(request, m.DeleteStream) and request.name == "orders":
                continue
            if isinstance(request, m.Heartbeat) and request.wait_ms:
                continue
            try:
                await client.call(request)
            except InternalError as error:
                raise AssertionError(f"{request} met a defect") from error
            except StreamkitError:
                continue
        assert (await client.describe_node()).ready
        assert (await client.put_batch(shard, batch_of(b"still here"))).base_sequence >= 1
