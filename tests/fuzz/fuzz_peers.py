"""Hostile bytes against both ends of a link between nodes, coverage-guided.

    pip install atheris && python -m tests.fuzz.fuzz_peers -atheris_runs=200000

`one_input` is also what tests/fuzz/test_fuzz_peers.py runs on random damage, without atheris. The first byte of an
input says which end gets the rest, whether it has greeted, and into how many pieces it is cut.
"""

from __future__ import annotations

import sys

import msgspec

from streamkit.errors import ProtocolMismatch, StreamkitError
from streamkit.protocol import peers as p
from streamkit.protocol.frames import FrameWriter
from streamkit.protocol.messages import Failure
from streamkit.protocol.peers import Identity, PeerConnection, PeerSide, PeerState

KEEP_BYTES = 256 * 1024
_SHARD = bytes(range(16))
_OURS = {PeerSide.DIALLING: Identity("c", "a", b"1"), PeerSide.LISTENING: Identity("c", "b", b"2")}


def end_of(side: PeerSide) -> PeerConnection:
    return PeerConnection(side, _OURS[side], expected="b" if side is PeerSide.DIALLING else "", keep_bytes=KEEP_BYTES)


def opened(side: PeerSide) -> PeerConnection:
    dialling, listening = end_of(PeerSide.DIALLING), end_of(PeerSide.LISTENING)
    listening.feed(b"".join(dialling.take()))
    dialling.feed(b"".join(listening.take()))
    end = dialling if side is PeerSide.DIALLING else listening
    assert end.state is PeerState.OPEN
    return end


def one_input(data: bytes) -> None:
    """Whatever the bytes are: typed failure or frames, whole memory, bounded buffers, the same in any pieces."""
    if not data:
        return
    side = PeerSide.DIALLING if data[0] & 1 else PeerSide.LISTENING
    size = (data[0] >> 2) * 7 + 1
    pieces = [data[1:][at : at + size] for at in range(0, len(data) - 1, size)]
    outcomes = []
    for parts in ([data[1:]], pieces):
        end = opened(side) if data[0] & 2 else end_of(side)
        frames: list[object] = []
        for part in parts:
            frames += [touched(frame) for frame in end.feed(part)]
            assert end.reader.capacity_bytes <= max(2 * len(data), KEEP_BYTES)
        assert (end.state is PeerState.CLOSED) == (end.failure is not None)
        assert end.failure is None or isinstance(end.failure, StreamkitError)
        reason = end.failure.facts.get("reason") if isinstance(end.failure, ProtocolMismatch) else None
        outcomes.append((frames, end.state, None if reason in ("http", "tls", "ssh", "length") else reason))
    assert outcomes[0] == outcomes[1], "a cut changes nothing"


def touched(frame: object) -> object:
    """Reads every byte that a frame lends out, so that a bad view crashes here."""
    lent = getattr(frame, "batches", b"")
    views = [bytes(view) for view in lent] if isinstance(lent, list) else bytes(lent)
    return repr(frame).split(" object at ")[0], views


def seeds() -> list[bytes]:
    """Sound conversations of either side, to start from."""
    stored = b"SK\x01\0" + (120).to_bytes(4, "little") + bytes(112)
    hello, welcome, spoken = FrameWriter(), FrameWriter(), FrameWriter()
    hello.message(0, msgspec.msgpack.encode(p.PeerHello(1, 2, "c", "a", b"1")))
    welcome.message(0, msgspec.msgpack.encode(p.PeerWelcome(2, "b", b"2")))
    spoken.begin_replicate()
    spoken.section(_SHARD, 7, 0, 5, 6, 5, 0, 5, 3, [stored, stored])
    spoken.section(_SHARD, 7, 2, 5, 6, 5, 0, 5, 3, [])
    spoken.end_replicate()
    spoken.replicated([(_SHARD, _SHARD, 7, 0, 5, 5), (_SHARD, _SHARD, 7, 1, 5, 0)])
    for request_id, message in enumerate((p.Seal(((_SHARD, 7),)), p.Heard(4), Failure("not_found", "no")), 1):
        spoken.message(request_id, msgspec.msgpack.encode(message))
    spoken.fetch(4, _SHARD, 5, 1 << 20, 0)
    spoken.fetch_ok(5, 9, 0, 9, 9, [stored])
    spoken.message(0, msgspec.msgpack.encode(p.Beat()))
    said = b"".join(spoken.take())
    texts = {0: b"".join(hello.take()) + said, 1: b"".join(welcome.take()) + said, 2: said, 3: said}
    return [bytes([first | cut << 2]) + text for first, text in texts.items() for cut in (0, 1, 9)]


def main() -> None:
    import tempfile
    from pathlib import Path

    import atheris  # not a dependency: it has no wheel for every Python that streamkit runs on

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], atheris.instrument_func(one_input))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
