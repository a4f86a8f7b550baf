"""Any request to any operation of a real node is answered in shape: never with a fault of ours, never not at all."""

import asyncio
import contextlib
import json

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.gateway.kinesis.service import UNKNOWN_HERE
from streamkit.gateway.wire import decode_cbor
from tests.gateway.botocore_shapes import OPERATIONS, ORACLE, damages, valid, written
from tests.gateway.calling import CBOR, JSON, headers
from tests.gateway.kinesis.desk import Refusal, desk_at, node_in, place

SERVED = sorted(set(OPERATIONS) - UNKNOWN_HERE)
SHARD = "shardId-000000000000"


class Office:
    """A desk on a loop of its own, which runs while it is asked."""

    def __init__(self, runner, desk):
        self.run = runner.run
        self.desk = desk
        self.known = {}

    async def fill(self):
        """Streams that were deleted or changed are made again, and the tokens are fresh."""
        with contextlib.suppress(Refusal):
            await self.desk.make("s", 2)
        with contextlib.suppress(Refusal):
            await self.desk("RegisterStreamConsumer", StreamARN=place().arn, ConsumerName="c")
        self.known = {
            "StreamName": ["s", "none"], "StreamARN": [place().arn, place("none").arn], "ShardId": [SHARD, "7"],
            "ShardToSplit": [SHARD], "ShardToMerge": [SHARD], "ConsumerName": ["c", "d"],
            "AdjacentShardToMerge": ["shardId-000000000001"], "ResourceARN": [place().arn, place("none").arn],
        }  # fmt: skip
        with contextlib.suppress(Refusal):
            self.known["ShardIterator"] = [await self.desk.iterator()]
        with contextlib.suppress(Refusal):
            consumer = (await self.desk("ListStreamConsumers", StreamARN=place().arn))["Consumers"][0]
            self.known["ConsumerARN"] = [consumer["ConsumerARN"]]

    async def ask(self, operation, body, cbor):
        """The status, and the name of the error."""
        response = await self.desk.send(operation, body, CBOR if cbor else JSON)
        assert response.status in (200, 400), (operation, body, response)
        if response.status == 200:
            return 200, ""
        told = headers(response)
        is_cbor = "cbor" in told["content-type"]
        assert is_cbor == (cbor and operation != "SubscribeToShard")
        error = decode_cbor(bytes(response.body)) if is_cbor else json.loads(bytes(response.body))
        assert error["__type"] == told["x-amzn-errortype"]
        assert isinstance(error.get("message", error.get("Message", "")), str)
        return response.status, error["__type"]


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def start():
            node = await stack.enter_async_context(node_in(tmp_path_factory.mktemp("node"), streams__shards_max=200))
            return await stack.enter_async_context(desk_at(node))

        yield Office(runner, runner.run(start()))
        runner.run(stack.aclose())


def drawn(data, office, operation, cbor):
    """What the operation's model allows, mostly about streams that are there."""
    shape = ORACLE.operation_model(operation).input_shape
    value = data.draw(valid(shape))
    for name, known in office.known.items():
        if name in shape.members and (name in value or data.draw(st.booleans())) and data.draw(st.integers(0, 4)):
            value[name] = data.draw(st.sampled_from(known))
    value.pop("StreamId", None)
    return shape, written(shape, value, cbor=cbor)


def encoded(body, cbor):
    return cbor2.dumps(body) if cbor else json.dumps(body).encode()


@pytest.mark.fuzz
@pytest.mark.parametrize("operation", SERVED)
@settings(max_examples=5)
@given(data=st.data(), cbor=st.booleans())
def test_what_the_model_allows_is_done_or_refused(office, operation, data, cbor):
    office.run(office.fill())
    _, body = drawn(data, office, operation, cbor)
    office.run(office.ask(operation, encoded(body, cbor), cbor))


@pytest.mark.fuzz
@pytest.mark.parametrize("operation", SERVED)
@settings(max_examples=5)
@given(data=st.data(), cbor=st.booleans())
def test_what_the_model_does_not_allow_is_refused(office, operation, data, cbor):
    office.run(office.fill())
    shape, body = drawn(data, office, operation, cbor)
    damage = data.draw(st.sampled_from(list(damages(shape, body))))
    status, name = office.run(office.ask(operation, encoded(damage.done_to(body), cbor), cbor))
    if status == 200 or name not in ("SerializationException", "ValidationException"):
        assert damage.path and damage.path[0] in LOOSE, (damage, name)


# What a stream that spreads its records by itself may leave out.
LOOSE = {"Records", "PartitionKey"}


@pytest.mark.fuzz
@settings(max_examples=30)
@given(data=st.data(), operation=st.sampled_from(SERVED), cbor=st.booleans())
def test_a_body_that_is_broken_anywhere_is_refused(office, data, operation, cbor):
    office.run(office.fill())
    whole = encoded(drawn(data, office, operation, cbor)[1], cbor)
    cut = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:cut] + b"\xff" + whole[cut + 1 :]
    broken = data.draw(st.sampled_from([whole[:cut], changed, whole + b"\xff", b"\x00"]))
    status, name = office.run(office.ask(operation, broken, cbor))
    assert status == 200 or name


@pytest.mark.fuzz
@settings(max_examples=30)
@given(
    operation=st.sampled_from(SERVED) | st.text(st.characters(codec="ascii"), max_size=20), cbor=st.booleans(),
    body=st.binary(max_size=60),
)
def test_any_bytes_are_answered(office, operation, body, cbor):
    office.run(office.ask(operation, body or b"{", cbor))


@pytest.mark.parametrize("operation", sorted(UNKNOWN_HERE))
def test_queues_and_channels_are_not_known(office, operation):
    assert office.run(office.ask(operation, b"{}", False)) == (400, "UnknownOperationException")
