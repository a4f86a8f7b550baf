"""Hostile bytes against the HTTP listener, coverage-guided.

    pip install atheris && python -m tests.fuzz.fuzz_http -atheris_runs=20000

`one_input` is also what tests/fuzz/test_fuzz_http.py runs on random damage, without atheris. The first byte of an
input says into how many pieces the rest is cut.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from hyperframe.frame import Frame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from streamkit.http.exchange import Request, Response, Sender
from tests.http.worlds import World, request, spoken

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
BLOCK = b"\x83\x86\x04\x01/\x01\x01a"              # POST / over http to the authority "a", by the static table


class Defects(logging.Handler):
    """What the listener logs as its own failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


async def plain(request: Request) -> Response:
    """An answer of each kind: whole, streamed, late."""
    async def give(sender: Sender) -> None:
        for _ in range(3):
            await sender.send(request.body[:100] or b"-")

    await asyncio.sleep(len(request.path) % 3)
    return Response(200, stream=give) if "s" in request.path else Response(200, (), request.body)


def answered(pieces: list[bytes]) -> bytes:
    """What came back until every time-out had passed; the connection has ended then, and everything is given back."""
    async def test(world: World) -> bytes:
        peer = await world.open()
        for piece in pieces:
            peer.send(piece)
            await asyncio.sleep(0)
        await asyncio.sleep(400)
        assert peer.lost, "every time-out has passed"
        return bytes(peer.data)

    defects = Defects()
    logger = logging.getLogger("streamkit.http")
    logger.addHandler(defects)
    try:
        return World(plain, body_bytes_max=3000, target_bytes_max=20).run(test)
    finally:
        logger.removeHandler(defects)
        assert defects.found == []


def one_input(data: bytes) -> None:
    """Whatever the bytes are: answers or an end, no defect, nothing kept; for HTTP/1.1 the same in any pieces."""
    if not data:
        return
    size, rest = 1 + data[0] * 3, data[1:]
    whole = answered([rest])
    cut = answered([rest[at : at + size] for at in range(0, len(rest), size)])
    if not rest.startswith(b"PRI "):
        assert whole == cut, "a cut changes nothing"


def seeds() -> list[bytes]:
    """Sound conversations: HTTP/1.1, HTTP/2, and HTTP/2 frame by frame."""
    chunked = request("/s", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n"
    frames: list[Frame] = [
        HeadersFrame(1, BLOCK, flags=["END_HEADERS", "END_STREAM"]), PingFrame(0, opaque_data=b"12345678"),
        HeadersFrame(3, BLOCK, flags=["END_HEADERS"]), WindowUpdateFrame(3, window_increment=100),
    ]  # fmt: skip
    return [
        request("/", method="POST", body=b"abc") + request("/s"),
        request("/", "Expect: 100-continue", method="POST", body=b"abc") + chunked + request("/", close=True),
        request("/", "Connection: upgrade", "Upgrade: h2c", method="POST", body=b"abc"),
        spoken(("/", b"abc"), ("/s", bytes(3000)))[0], spoken(("/", bytes(3001)), ("/s", b""))[0],
        PREFACE + b"".join(frame.serialize() for frame in frames),
    ]


def main() -> None:
    import atheris

    def run(data: bytes) -> None:
        one_input(data)

    atheris.Setup([*sys.argv, *()], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
