"""The sync client: the same calls from an ordinary thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from streamkit.client import Client
from streamkit.errors import ApplicationNotFound, Conflict, InvalidUse, StreamNotFound
from streamkit.runtime.real import LoopThread, RealNetwork
from streamkit.testing import Node
from tests.client.stand_in import StandIn, batch_of
from tests.client.test_client import CONFIG, runtime
from tests.waiting import until


@pytest.fixture
def broker() -> Iterator[StandIn]:
    thread = LoopThread.shared()
    broker = thread.run(StandIn().listen(RealNetwork()))
    yield broker
    thread.run(broker.close())


def test_a_round_trip_without_a_coroutine_in_sight(broker: StandIn) -> None:
    with Client(broker.address, runtime(), config=CONFIG) as client:
        shard = client.create_stream("s", shards=2).shards[1]
        assert client.put_batch(shard, batch_of(b"x")).base_sequence == 0
        assert [bytes(b) for b in client.fetch(shard, 0).batches] == [batch_of(b"x")]
        assert [stream.name for stream in client.list_streams()] == ["s"]
        with pytest.raises(StreamNotFound):
            client.describe_stream("t")
        client.delete_stream("s")
    client.close()


def test_a_client_made_before_a_fork_refuses_to_work_in_the_child(broker: StandIn) -> None:
    with Client(broker.address, runtime(), config=CONFIG) as client:
        child = os.fork()
        if child == 0:
            try:
                client.list_streams()
            except InvalidUse as error:
                os._exit(0 if "fork" in str(error) else 2)
            except BaseException:
                os._exit(3)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.list_streams() == []


def test_an_application_is_deleted_when_its_workers_have_ended() -> None:
    with Node() as node:
        node.create_stream("orders")
        consumer = node.consumer("orders", application="billing", start="trim_horizon")
        consumer.handler(_nothing)
        with consumer:
            until(lambda: "billing" in node.client.list_applications())
            with pytest.raises(Conflict, match="running"):
                node.client.delete_application("billing")

        node.client.delete_application("billing")

        assert node.client.list_applications() == ()
        with pytest.raises(ApplicationNotFound):
            node.client.delete_application("billing")


def _nothing(value: dict[str, int]) -> None:
    """It is only to have been there."""
