"""Frames parsed out of a receive buffer and laid out for writing. Each run handles FRAMES frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamkit._core.framing import FrameReader, FrameWriter

FRAMES = 20_000
READ_BYTES = 256 * 1024
SHARD = bytes(range(16))
SMALL = b"SK\x01\x00" + (212).to_bytes(4, "little") + bytes(204)
LARGE = b"SK\x01\x00" + (65_536).to_bytes(4, "little") + bytes(65_528)

Write = Callable[[FrameWriter, int], None]
SHAPES: dict[str, tuple[Write, int]] = {
    "put-1x100B": (lambda writer, i: writer.put(i, SHARD, 1_000, SMALL), FRAMES),
    "put_ok": (lambda writer, i: writer.put_ok(i, i, i, 1), FRAMES),
    "fetch": (lambda writer, i: writer.fetch(i, SHARD, i, 1 << 20, 500), FRAMES),
    "put-64KiB": (lambda writer, i: writer.put(i, SHARD, 1_000, LARGE), 200),
    "fetch_ok-16x64KiB": (lambda writer, i: writer.fetch_ok(i, 9, 0, 9, 9, [LARGE] * 16), 20),
}


def laid_out(write: Write, count: int) -> list[Any]:
    writer = FrameWriter()
    for request_id in range(1, count + 1):
        write(writer, request_id)
    return writer.take()


def parsed(stream: memoryview) -> int:
    """How many frames come out of the stream, received as a socket would hand it over."""
    reader = FrameReader(16 * 1024 * 1024, 1024 * 1024)
    count = at = 0
    while at < len(stream):
        room = reader.get_buffer()
        size = min(len(room), READ_BYTES, len(stream) - at)
        room[:size] = stream[at : at + size]
        at += size
        count += len(reader.buffer_updated(size))
    return count


@pytest.mark.parametrize("shape", SHAPES)
def bench_parse_frames(benchmark: Any, shape: str) -> None:
    write, count = SHAPES[shape]
    stream = memoryview(b"".join(laid_out(write, count)))
    benchmark.extra_info.update(frames=count, bytes=len(stream))
    assert benchmark(parsed, stream) == count


@pytest.mark.parametrize("shape", SHAPES)
def bench_lay_out_frames(benchmark: Any, shape: str) -> None:
    write, count = SHAPES[shape]
    parts = benchmark(laid_out, write, count)
    benchmark.extra_info.update(frames=count)
    assert parsed(memoryview(b"".join(parts))) == count
