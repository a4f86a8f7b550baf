"""The wire between nodes: who may greet whom, in which version, and what ends a link."""

from __future__ import annotations

import msgspec
import pytest

from streamkit.errors import InvalidRequest, NotFound, ProtocolMismatch
from streamkit.protocol import messages as m
from streamkit.protocol import peers as p
from streamkit.protocol.conversion import failure_to_wire
from streamkit.protocol.frames import Acknowledgement, FetchFrame, FrameWriter, Section
from streamkit.protocol.peers import Answered, Asked, Identity, PeerConnection, PeerSide, PeerState

SHARD = bytes(range(16))


def ends(*, ours=None, theirs=None, expected="b", admit=None):
    """A dialling end (of node a) and a listening one (of node b), not yet introduced."""
    dialling = PeerConnection(PeerSide.DIALLING, ours or Identity("c1", "a", b"disk of a", "h:1"), expected=expected)
    listening = PeerConnection(PeerSide.LISTENING, theirs or Identity("c1", "b", b"disk of b"), admit=admit)
    return dialling, listening


def greet(dialling, listening):
    listening.feed(b"".join(dialling.take()))
    return dialling.feed(b"".join(listening.take()))


def opened(**given):
    dialling, listening = ends(**given)
    assert greet(dialling, listening) == []
    assert dialling.state is listening.state is PeerState.OPEN
    return dialling, listening


def said(*messages):
    writer = FrameWriter()
    for request_id, message in messages:
        writer.message(request_id, msgspec.msgpack.encode(message))
    return b"".join(writer.take())


def test_two_nodes_learn_who_the_other_is():
    dialling, listening = opened()

    assert (dialling.peer, dialling.peer_disk) == ("b", b"disk of b")
    assert (listening.peer, listening.peer_disk, listening.peer_address) == ("a", b"disk of a", "h:1")


@pytest.mark.parametrize("dials, listens, spoken", [(2, 2, 2), (1, 2, 1), (2, 1, 1), (1, 1, 1)])
def test_two_versions_speak_the_older(dials, listens, spoken):
    dialling, listening = opened(
        ours=Identity("c1", "a", b"", version_max=dials), theirs=Identity("c1", "b", b"", version_max=listens)
    )

    assert dialling.version == listening.version == spoken


def test_a_version_of_the_future_speaks_what_we_know():
    _, listening = ends()
    listening.feed(said((0, p.PeerHello(1, 99, "c1", "a", b""))))

    assert listening.version == p.PEER_VERSION_MAX


@pytest.mark.parametrize(
    "hello, reason, text",
    [
        (p.PeerHello(3, 9, "c1", "a", b""), "version", "speaks peer protocol 3 to 9"),
        (p.PeerHello(0, 0, "c1", "a", b""), "version", "speaks peer protocol 0 to 0"),
        (p.PeerHello(1, 2, "c2", "a", b""), "cluster", "node a belongs to cluster c2, node b to c1"),
        (p.PeerHello(1, 2, "", "a", b""), "cluster", "belongs to cluster none"),
        (p.PeerHello(1, 2, "c1", "b", b""), "name", "another node calls itself b"),
        (p.PeerHello(1, 2, "c1", "c", b""), "direction", "it is b that dials it"),
        (p.PeerHello(1, 2, "c1", "", b""), "direction", "dialled"),
    ],
)
def test_who_does_not_belong_is_told_why_and_leaves_no_trace(hello, reason, text):
    _, listening = ends()

    assert listening.feed(said((0, hello))) == []
    assert listening.state is PeerState.CLOSED
    assert isinstance(listening.failure, ProtocolMismatch) and listening.failure.facts["reason"] == reason
    assert text in str(listening.failure)
    assert (listening.peer, listening.version) == ("", 0)
    dialling, _ = ends()
    dialling.feed(b"".join(listening.take()))
    assert str(dialling.failure) == str(listening.failure)
    assert isinstance(dialling.failure, ProtocolMismatch)


def test_who_admits_may_refuse():
    def admit(hello):
        raise InvalidRequest(f"not {hello.node}", node=hello.node)

    dialling, listening = ends(admit=admit)
    greet(dialling, listening)

    assert isinstance(dialling.failure, InvalidRequest) and dialling.failure.facts == {"node": "a"}
    assert listening.peer == ""


def test_another_node_at_a_registered_address_is_found_out():
    dialling, listening = ends(expected="bb", theirs=Identity("c1", "b", b""))
    greet(dialling, listening)

    assert dialling.state is PeerState.CLOSED
    assert str(dialling.failure) == "node b answers where node bb is registered"


def test_a_version_that_was_not_offered_is_refused():
    dialling, _ = ends(ours=Identity("c1", "a", b"", version_max=1))
    dialling.feed(said((0, p.PeerWelcome(2, "b", b""))))

    assert dialling.failure.facts["reason"] == "version"


MESSAGES = [
    p.PeerHello(1, 2, "c1", "a", b"d", "h:1"), p.PeerWelcome(1, "b", b"d"), p.Beat(), p.Seal(((SHARD, 7),)),
    p.Sealed((p.SealedShard(SHARD, True, 7, SHARD, True, 1, 2**63, 2, ((1, 0), (7, 5))), p.SealedShard(SHARD, False))),
    p.Hear("c"), p.Heard(-1), p.DigestRange(SHARD, 0, 2**63), p.Digest(2**32 - 1, 4, 9), m.Failure("not_found", "no"),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_travel_unchanged(message):
    decoder = msgspec.msgpack.Decoder(p.PeerMessage)

    assert decoder.decode(msgspec.msgpack.encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("side", PeerSide)
@pytest.mark.parametrize("state", [PeerState.GREETING, PeerState.OPEN])
def test_what_the_table_lacks_closes_the_link(message, side, state):
    dialling, listening = ends() if state is PeerState.GREETING else opened()
    end = dialling if side is PeerSide.DIALLING else listening
    one_way = isinstance(message, p.PeerHello | p.PeerWelcome | p.Beat)
    end.feed(said((0 if one_way else 3, message)))

    allowed = type(message) in p.PEER_MOVES[side][state]
    assert (end.failure is None or end.failure.facts.get("reason") != "state") is allowed


def test_numbers_belong_to_requests_and_answers_only():
    for request_id, message in ((1, p.Beat()), (0, p.Hear("c")), (0, p.Heard(1))):
        _, listening = opened()
        listening.feed(said((request_id, message)))
        assert listening.failure.facts["reason"] == "request"


def test_requests_and_answers_go_both_ways_at_once():
    dialling, listening = opened()
    dialling.send(p.Hear("c"), 1)
    listening.send(p.Hear("d"), 1)
    listening.send(p.Beat())
    there, back = listening.feed(b"".join(dialling.take())), dialling.feed(b"".join(listening.take()))

    assert there == [Asked(1, p.Hear("c"))] and back == [Asked(1, p.Hear("d"))]
    dialling.send(failure_to_wire(NotFound("who is d")), 1)
    (answer,) = listening.feed(b"".join(dialling.take()))
    assert isinstance(answer, Answered) and answer.message.code == "not_found"
    assert dialling.beats == 1
    assert listening.state is PeerState.OPEN


def test_kernel_frames_pass_when_open_and_not_before():
    writer = FrameWriter()
    writer.begin_replicate()
    writer.section(SHARD, 7, 0, 5, 6, 4, 0, 5, 5, [])
    writer.end_replicate()
    writer.replicated([(SHARD, SHARD, 7, 0, 5, 5)])
    writer.fetch(1, SHARD, 0, 1000, 0)
    stream = b"".join(writer.take())
    _, listening = opened()

    assert [type(frame) for frame in listening.feed(stream)] == [Section, Acknowledgement, FetchFrame]
    for end in ends():
        assert end.feed(stream) == []
        assert end.failure.facts["reason"] == "state"


def test_puts_do_not_come_between_nodes():
    writer = FrameWriter()
    writer.put(1, SHARD, 1000, bytes(112))
    _, listening = opened()
    listening.feed(b"".join(writer.take()))

    assert listening.failure.facts["reason"] == "state"


def test_who_breaks_the_protocol_is_told_so_and_what_came_before_counts():
    dialling, listening = opened()
    dialling.send(p.Hear("c"), 1)
    found = listening.feed(b"".join(dialling.take()) + b"\xff\xff\xff\xff")

    assert found == [Asked(1, p.Hear("c"))]
    assert listening.state is PeerState.CLOSED
    dialling.feed(b"".join(listening.take()))
    assert dialling.state is PeerState.CLOSED
    assert str(dialling.failure) == str(listening.failure)
    assert dialling.take() == [], "no answer to an answer"


def test_our_own_mistakes_are_asserted():
    dialling, _ = ends()
    with pytest.raises(AssertionError):
        dialling.send(p.Hear("c"), 1)
    dialling, _ = opened()
    with pytest.raises(AssertionError):
        dialling.send(p.Beat(), 1)
    with pytest.raises(AssertionError):
        dialling.send(p.Hear("c"))


def test_tags_between_nodes_are_their_own():
    shared = {m.Failure, m.DescribeCopies, m.CopiesDescribed}      # clients say them, too
    tags = [message.__struct_config__.tag for message in p.PeerMessage.__args__ if message not in shared]

    assert len(set(tags)) == len(tags)
    assert all(70 <= tag <= 99 for tag in tags)
    assert not set(tags) & {message.__struct_config__.tag for message in m.Message.__args__}
