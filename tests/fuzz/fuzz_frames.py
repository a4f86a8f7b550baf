"""Hostile bytes against both ends of the wire, coverage-guided.

    pip install atheris && python -m tests.fuzz.fuzz_frames -atheris_runs=200000

`one_input` is also what tests/fuzz/test_fuzz_frames.py runs on random damage, without atheris. The first byte
of an input says which end gets the rest and into how many pieces it is cut.
"""

from __future__ import annotations

import sys

from streamkit.errors import ProtocolMismatch, StreamkitError
from streamkit.protocol import messages as m
from streamkit.protocol.connection import Connection, Received, Side, State
from streamkit.protocol.frames import FrameWriter

KEEP_BYTES = 256 * 1024


def opened(side: Side) -> Connection:
    end, other = Connection(side, "one", keep_bytes=KEEP_BYTES), Connection(_other(side), "two")
    client, broker = (end, other) if side is Side.CLIENT else (other, end)
    broker.feed(b"".join(client.take()))
    client.feed(b"".join(broker.take()))
    assert end.state is State.OPEN
    return end


def one_input(data: bytes) -> None:
    """Whatever the bytes are: typed failure or frames, whole memory, bounded buffers, the same in any pieces."""
    if not data:
        return
    side = Side.CLIENT if data[0] & 1 else Side.BROKER
    greeted = bool(data[0] & 2)
    size = (data[0] >> 2) * 7 + 1
    pieces = [data[1:][at : at + size] for at in range(0, len(data) - 1, size)]
    outcomes = []
    for parts in ([data[1:]], pieces):
        end = opened(side) if greeted else Connection(side, "one", keep_bytes=KEEP_BYTES)
        frames: list[object] = []
        for part in parts:
            frames += [touched(frame) for frame in end.feed(part)]
            assert end.reader.capacity_bytes <= max(2 * len(data), KEEP_BYTES)
        assert (end.state is State.CLOSED) == (end.failure is not None)
        assert end.failure is None or isinstance(end.failure, StreamkitError)
        reason = end.failure.facts.get("reason") if isinstance(end.failure, ProtocolMismatch) else None
        outcomes.append((frames, end.state, None if reason in ("http", "tls", "ssh", "length") else reason))
    assert outcomes[0] == outcomes[1], "a cut changes nothing"


def touched(frame: object) -> object:
    """Reads every byte that a frame lends out, so that a bad view crashes here."""
    if isinstance(frame, Received):
        return frame
    batch, batches = getattr(frame, "batch", b""), getattr(frame, "batches", [])
    return type(frame).__name__, bytes(batch), [bytes(view) for view in batches]


def seeds() -> list[bytes]:
    """Sound conversations of either side, to start from."""
    requests, answers = FrameWriter(), FrameWriter()
    stored = b"SK\x01\0" + (120).to_bytes(4, "little") + bytes(112)
    requests.message(1, m.encode(m.DescribeStream("orders")))
    requests.put(2, b"u" * 16, 1_000, stored)
    requests.fetch(3, b"u" * 16, 5, 1 << 20, 500, 1, 2, "billing")
    requests.message(0, m.encode(m.Goodbye("enough")))
    answers.message(1, m.encode(m.Done()))
    answers.put_ok(2, 1, 2, 3, 1)
    answers.fetch_ok(3, 9, 0, 9, 9, [stored, stored])
    answers.message(4, m.encode(m.Failure("not_found", "no", "", {"n": 1})))
    hello, welcome = FrameWriter(), FrameWriter()
    hello.message(0, m.encode(m.Hello(1, 1, "c")))
    welcome.message(0, m.encode(m.Welcome(1, "n", 1 << 20)))
    said = {2: requests, 3: answers, 0: hello, 1: welcome}
    texts = {first: b"".join(writer.take()) for first, writer in said.items()}
    texts[0] += texts[2]
    texts[1] += texts[3]
    return [bytes([first | cut << 2]) + text for first, text in texts.items() for cut in (0, 1, 9)]


def _other(side: Side) -> Side:
    return Side.BROKER if side is Side.CLIENT else Side.CLIENT


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
