"""When each frame may come: the table of states, held against both ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import NodeDraining, ProtocolMismatch
from streamkit.protocol import messages as m
from streamkit.protocol.connection import ANSWERS, MOVES, REQUESTS, Connection, Received, Side, State
from streamkit.protocol.frames import (
    HTTP_ANSWER,
    MESSAGE_BYTES_MAX,
    Fetched,
    FetchFrame,
    FrameWriter,
    PutFrame,
    PutReceipt,
)


def joined(end: Connection) -> bytes:
    return b"".join(end.take())


def a_pair() -> tuple[Connection, Connection]:
    """A client and a broker that have greeted each other."""
    client, broker = Connection(Side.CLIENT, "a client"), Connection(Side.BROKER, "n1")
    assert broker.feed(joined(client)) == []
    assert client.feed(joined(broker)) == []
    return client, broker


def packed(message: m.Message, request_id: int) -> bytes:
    writer = FrameWriter()
    writer.message(request_id, m.encode(message))
    return b"".join(writer.take())


def data_frame(kind: type) -> bytes:
    writer = FrameWriter()
    if kind is PutFrame:
        writer.put(1, bytes(16), 0, b"")
    elif kind is FetchFrame:
        writer.fetch(1, bytes(16), 0, 0, 0)
    elif kind is PutReceipt:
        writer.put_ok(1, 0, 0, 0)
    else:
        writer.fetch_ok(1, 0, 0, 0, 0, [])
    return b"".join(writer.take())


def test_the_greeting_opens_both_ends_and_tells_who_is_there() -> None:
    client, broker = a_pair()
    assert client.state is broker.state is State.OPEN
    assert (client.peer, broker.peer) == ("n1", "a client")
    assert client.version == broker.version == 1


def test_requests_and_answers_cross_in_any_order() -> None:
    client, broker = a_pair()
    client.writer.put(1, b"u" * 16, 1_000, b"a batch")
    client.send(m.DescribeStream("s"), 2)
    put, asked = broker.feed(joined(client))
    assert isinstance(put, PutFrame) and bytes(put.batch) == b"a batch"
    assert asked == Received(2, m.DescribeStream("s"))
    broker.send(m.Done(), 2)
    broker.writer.put_ok(1, 7, 8, 9)
    done, receipt = client.feed(joined(broker))
    assert done == Received(2, m.Done())
    assert isinstance(receipt, PutReceipt) and receipt.base_sequence == 7


def test_every_message_is_a_request_or_an_answer_or_part_of_the_greeting() -> None:
    known = {*REQUESTS, *ANSWERS, m.Hello, m.Welcome, m.Goodbye}
    assert known == set(m.Message.__args__)  # type: ignore[attr-defined]
    assert not set(REQUESTS) & set(ANSWERS)


DATA = (PutFrame, FetchFrame, PutReceipt, Fetched)
SAMPLES: dict[type, m.Message] = {
    m.Hello: m.Hello(1, 1), m.Welcome: m.Welcome(1, "n", 1 << 20), m.Failure: m.Failure("internal", "x"),
    m.Goodbye: m.Goodbye(), m.Done: m.Done(), m.DescribeNode: m.DescribeNode(), m.NewProducer: m.NewProducer(),
    m.ProducerGiven: m.ProducerGiven(1, 1), m.ListStreams: m.ListStreams(), m.StreamsListed: m.StreamsListed((), False),
}  # fmt: skip


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", [*SAMPLES, *DATA])
def test_what_is_missing_from_the_table_ends_the_connection(side: Side, state: State, kind: type) -> None:
    end = Connection(side)
    end.take()
    end._enter(state)
    one_way = kind in (m.Hello, m.Welcome, m.Goodbye)
    stream = data_frame(kind) if kind in DATA else packed(SAMPLES[kind], 0 if one_way else 1)
    admitted = end.feed(stream)
    if kind in MOVES[side][state]:
        assert end.state is MOVES[side][state][kind]
        assert state is State.GREETING or len(admitted) == 1
    else:
        assert admitted == []
        assert end.state is State.CLOSED
        assert state is State.CLOSED or isinstance(end.failure, ProtocolMismatch)


def test_after_the_clients_goodbye_answers_still_leave_but_requests_may_not_come() -> None:
    client, broker = a_pair()
    client.say_goodbye("enough")
    assert client.state is State.DRAINING
    assert broker.feed(joined(client)) == [Received(0, m.Goodbye("enough"))]
    assert broker.state is State.DRAINING
    broker.writer.put_ok(1, 7, 8, 9)
    assert len(client.feed(joined(broker))) == 1
    broker.feed(packed(m.DescribeNode(), 5))
    assert broker.state is State.CLOSED


def test_a_broker_that_stops_still_answers_what_is_on_its_way() -> None:
    client, broker = a_pair()
    client.send(m.DescribeNode(), 1)
    broker.say_goodbye("restart")
    assert client.feed(joined(broker)) == [Received(0, m.Goodbye("restart"))]
    assert client.state is State.DRAINING
    assert broker.feed(joined(client)) == [Received(1, m.DescribeNode())]
    broker.send(m.Failure("node_draining", "stopping"), 1)
    assert client.feed(joined(broker)) == [Received(1, m.Failure("node_draining", "stopping"))]


def test_versions_too_far_apart_are_told_to_the_client() -> None:
    broker, client = Connection(Side.BROKER, "n1"), Connection(Side.CLIENT)
    assert broker.feed(packed(m.Hello(2, 9), 0)) == []
    assert broker.state is State.CLOSED
    assert client.feed(joined(broker)) == []
    assert isinstance(client.failure, ProtocolMismatch)
    assert str(client.failure) == "the client speaks protocol 2 to 9, this broker 1 to 1"
    assert client.failure.facts["theirs"] == 9


def test_a_version_that_was_not_offered_is_refused() -> None:
    client = Connection(Side.CLIENT)
    client.feed(packed(m.Welcome(2, "n1", 1 << 20), 0))
    assert isinstance(client.failure, ProtocolMismatch)


def test_a_newer_client_that_still_speaks_ours_is_welcome() -> None:
    broker = Connection(Side.BROKER, "n1")
    broker.feed(packed(m.Hello(1, 9), 0))
    assert (broker.state, broker.version) == (State.OPEN, 1)


def test_a_browser_gets_an_answer_it_can_show() -> None:
    broker = Connection(Side.BROKER, "n1")
    assert broker.feed(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == []
    assert broker.state is State.CLOSED
    assert joined(broker) == HTTP_ANSWER
    head, _, body = HTTP_ANSWER.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head


def test_frames_before_garbage_are_handed_out_and_the_peer_is_told_why() -> None:
    client, broker = a_pair()
    client.send(m.DescribeNode(), 1)
    admitted = broker.feed(joined(client) + b"\xff" * 12)
    assert admitted == [Received(1, m.DescribeNode())]
    assert broker.state is State.CLOSED
    client.feed(joined(broker))
    assert client.failure is not None and client.failure.facts["reason"] == "length"


def test_a_failure_for_the_whole_connection_closes_it() -> None:
    client, broker = a_pair()
    broker.fail(NodeDraining("n1 is stopping", node="n1"))
    assert client.feed(joined(broker)) == []
    assert isinstance(client.failure, NodeDraining)


@pytest.mark.parametrize("message, request_id", [(m.DescribeNode(), 0), (m.Goodbye(), 3)])
def test_a_request_without_a_number_or_a_greeting_with_one_is_refused(message: m.Message, request_id: int) -> None:
    _, broker = a_pair()
    assert broker.feed(packed(message, request_id)) == []
    assert broker.failure is not None and broker.failure.facts["reason"] == "request"


def test_a_message_above_its_limit_is_refused_unread() -> None:
    _, broker = a_pair()
    assert broker.feed(packed(m.DescribeStream("x" * MESSAGE_BYTES_MAX), 1)) == []
    assert broker.failure is not None and broker.failure.facts["reason"] == "message"


@pytest.mark.fuzz
@given(noise=st.binary(max_size=300))
def test_a_message_of_noise_is_a_mismatch_never_another_error(noise: bytes) -> None:
    _, broker = a_pair()
    writer = FrameWriter()
    writer.message(1, noise)
    admitted = broker.feed(b"".join(writer.take()))
    assert admitted or isinstance(broker.failure, ProtocolMismatch)


@pytest.mark.fuzz
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(1, 100))
def test_a_damaged_conversation_ends_typed(at: int, value: int, cut: int) -> None:
    client, _ = a_pair()
    client.send(m.JoinApplication("app", "w", ("s",), "trim_horizon"), 1)
    client.writer.put(2, b"u" * 16, 1_000, b"a batch" * 9)
    client.writer.fetch(3, b"u" * 16, 1, 2, 3, 4, 5, "app")
    client.send(m.Checkpoint("app", "w", (m.CheckpointItem(b"u" * 16, 1, 1, 5, {3: 1}),)), 4)
    stream = bytearray(packed(m.Hello(1, 1, "c"), 0) + joined(client))
    stream[at % len(stream)] = value
    broker = Connection(Side.BROKER, "n1")
    for start in range(0, len(stream), cut):
        broker.feed(stream[start : start + cut])
    assert broker.state is not State.CLOSED or isinstance(broker.failure, ProtocolMismatch)


def test_our_own_misuse_is_asserted() -> None:
    client, broker = a_pair()
    for end, message in ((client, m.Done()), (broker, m.DescribeNode())):
        with pytest.raises(AssertionError):
            end.send(message, 1)
    with pytest.raises(AssertionError):
        client.send(m.DescribeNode(), 0)
    with pytest.raises(AssertionError):
        Connection(Side.CLIENT).send(m.DescribeNode(), 1)
