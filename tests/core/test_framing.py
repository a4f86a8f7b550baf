"""Frames: whatever the stream is cut into, the same frames come out, and garbage never gets further than its reason."""

from __future__ import annotations

import gc
import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core import debug, framing
from streamkit._core.framing import (
    Acknowledgement,
    Fetched,
    FetchFrame,
    FrameReader,
    FrameWriter,
    MessageFrame,
    PutFrame,
    PutReceipt,
    Section,
)
from streamkit.errors import ProtocolMismatch
from tests import oracles_framing as oracle

LENGTH_MAX = 64 * 1024

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
request_ids = st.integers(1, 2**32 - 1)
uuids = st.binary(min_size=16, max_size=16)
bodies = st.one_of(st.binary(max_size=50), st.integers(0, 9_000).map(lambda size: bytes(range(256)) * (size // 256)))
batches = st.binary(max_size=40).map(
    lambda tail: b"SK\x01\0" + (112 + len(tail)).to_bytes(4, "little") + bytes(104) + tail
)
sections = st.tuples(
    uuids, u32, st.integers(0, 2), u64, u32, u64, u64, u64, u64,
    st.lists(st.one_of(batches, bodies.filter(len).map(lambda body: bytes(112) + body)), max_size=3).map(b"".join),
)  # fmt: skip
acknowledgements = st.tuples(uuids, uuids, u32, st.integers(0, 4), u64, u64)
frames = st.one_of(
    st.tuples(st.just(framing.MESSAGE), u32, bodies),
    st.tuples(st.just(framing.PUT), request_ids, uuids, u32, bodies),
    st.tuples(
        st.just(framing.PUT_OK), request_ids, u64, u64, u32, st.integers(0, 2), st.integers(0, 255), st.booleans()
    ),
    st.tuples(st.just(framing.FETCH), request_ids, uuids, u64, u32, u32, u64, u64, st.text(max_size=128)),
    st.tuples(st.just(framing.FETCH_OK), request_ids, u64, u64, u64, u64, st.lists(batches, max_size=4)),
    st.tuples(st.just(framing.REPLICATE), st.just(0), st.lists(sections, min_size=1, max_size=4)),
    st.tuples(st.just(framing.REPLICATED), st.just(0), st.lists(acknowledgements, max_size=4)),
)
streams = st.lists(frames, max_size=12)
cuts = st.lists(st.integers(1, 20_000), max_size=30)


def plain(frame: Any) -> tuple[Any, ...]:
    """A parsed frame as the oracle gives it."""
    match frame:
        case MessageFrame():
            return framing.MESSAGE, frame.request_id, frame.payload
        case PutFrame():
            return framing.PUT, frame.request_id, frame.shard, frame.timeout_ms, bytes(frame.batch)
        case PutReceipt():
            return (framing.PUT_OK, frame.request_id, frame.base_sequence, frame.append_time_ms, frame.epoch,
                    frame.duplicate, frame.replicas, frame.synced)  # fmt: skip
        case FetchFrame():
            return (framing.FETCH, frame.request_id, frame.shard, frame.start, frame.bytes_max, frame.wait_ms,
                    frame.lease_epoch, frame.session, frame.application)  # fmt: skip
        case Fetched():
            return (framing.FETCH_OK, frame.request_id, frame.high_watermark, frame.log_start, frame.log_end,
                    frame.next_sequence, [bytes(batch) for batch in frame.batches])  # fmt: skip
        case Section():
            return framing.REPLICATE, (
                frame.shard, frame.epoch, frame.level, frame.start, frame.previous_epoch, frame.high_watermark,
                frame.log_start, frame.leader_end, frame.epoch_start, bytes(frame.batches),
            )  # fmt: skip
        case Acknowledgement():
            return framing.REPLICATED, (
                frame.shard, frame.incarnation, frame.epoch, frame.verdict, frame.end, frame.written
            )  # fmt: skip
    raise AssertionError(frame)


def write(writer: FrameWriter, fields: tuple[Any, ...]) -> None:
    kind, request_id, *rest = fields
    if kind == framing.REPLICATE:
        writer.begin_replicate()
        for *section, stored in rest[0]:
            writer.section(*section, [stored] if stored else [])
        assert writer.end_replicate() == len(rest[0])
        return
    if kind == framing.REPLICATED:
        writer.replicated(rest[0])
        return
    {
        framing.MESSAGE: writer.message,
        framing.PUT: writer.put,
        framing.PUT_OK: writer.put_ok,
        framing.FETCH: writer.fetch,
        framing.FETCH_OK: writer.fetch_ok,
    }[kind](request_id, *rest)


def receive(reader: FrameReader, stream: bytes, sizes: list[int]) -> list[tuple[Any, ...]]:
    """Pour `stream` into the reader's own buffer in pieces of those sizes, again and again."""
    found = []
    for size in itertools.cycle(sizes or [1 << 20]):
        if not stream:
            return found
        room = reader.get_buffer()
        count = min(size, len(room), len(stream))
        room[:count] = stream[:count]
        found += map(plain, reader.buffer_updated(count))
        stream = stream[count:]
    raise AssertionError("unreachable")


@pytest.mark.fuzz
@given(stream=streams, sizes=cuts)
def test_any_split_of_the_stream_gives_the_same_frames(stream: list[tuple[Any, ...]], sizes: list[int]) -> None:
    reader = FrameReader(LENGTH_MAX, accepts=oracle.ALL_KINDS)
    assert receive(reader, b"".join(map(oracle.encode, stream)), sizes) == oracle.flat(stream)
    assert reader.failure is None
    assert reader.buffered_bytes == 0


@given(stream=streams)
def test_the_writer_lays_frames_out_as_the_oracle_does(stream: list[tuple[Any, ...]]) -> None:
    writer = FrameWriter()
    for fields in stream:
        write(writer, fields)
    expected = b"".join(map(oracle.encode, stream))
    assert writer.queued_bytes == len(expected)
    assert b"".join(writer.take()) == expected
    assert writer.take() == []
    assert writer.queued_bytes == 0


@pytest.mark.fuzz
@given(
    stream=st.lists(frames, min_size=1, max_size=4),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8),
    tail=st.binary(max_size=40),
    sizes=cuts,
    accepts=st.sampled_from([oracle.ALL_KINDS, 0x3E]),
)
def test_damaged_streams_give_what_the_oracle_gives(
    stream: list[tuple[Any, ...]], edits: list[tuple[int, int]], tail: bytes, sizes: list[int], accepts: int
) -> None:
    damaged = bytearray(b"".join(map(oracle.encode, stream)) + tail)
    for at, value in edits:
        damaged[at % min(len(damaged), 200)] = value
    expected, reason = oracle.parse(bytes(damaged), LENGTH_MAX, accepts)
    reader = FrameReader(LENGTH_MAX, accepts=accepts)
    assert receive(reader, bytes(damaged), sizes) == oracle.flat(expected)
    if reason is None:
        assert reader.failure is None
    else:
        assert isinstance(reader.failure, ProtocolMismatch)
        assert reader.failure.facts["reason"] in (reason, "tls")
    assert reader.capacity_bytes <= max(256 * 1024, 2 * LENGTH_MAX)


@pytest.mark.fuzz
@given(noise=st.binary(max_size=500))
def test_noise_ends_in_a_typed_failure_or_waits_for_more(noise: bytes) -> None:
    reader = FrameReader(LENGTH_MAX)
    receive(reader, noise, [])
    assert reader.failure is None or reader.failure.facts["reason"]
    assert reader.capacity_bytes <= 32 * 1024


def test_a_length_of_a_gibibyte_is_refused_before_anything_is_kept_for_it() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert reader.feed((1 << 30).to_bytes(4, "little")) == []
    assert str(reader.failure) == "a frame claims 1073741824 bytes, the limit is 65536"
    assert reader.feed(b"x" * 100_000) == []
    assert reader.buffered_bytes == 0


def test_the_buffer_grows_with_what_arrives_not_with_what_is_claimed() -> None:
    whole = oracle.frame(framing.PUT, 1, bytes(24), bytes(8_000_000))
    reader = FrameReader(10_000_000)
    received = 0
    capacities = set()
    while received < len(whole):
        room = reader.get_buffer()
        count = min(len(room), 1_400, len(whole) - received)
        room[:count] = whole[received : received + count]
        received += count
        parsed = reader.buffer_updated(count)
        capacities.add(reader.capacity_bytes)
        assert reader.capacity_bytes <= max(2 * received, 16 * 1024)
    assert [len(put) for put in parsed] == [8_000_000]
    assert max(capacities) <= len(whole)
    reader.get_buffer()
    assert reader.capacity_bytes <= 256 * 1024, "a large buffer is given back"


def test_a_slow_sender_of_single_bytes_costs_one_small_buffer() -> None:
    reader = FrameReader(LENGTH_MAX)
    whole = oracle.encode((framing.MESSAGE, 3, b"slow" * 2_000))
    for at in range(len(whole) - 1):
        assert receive(reader, whole[at : at + 1], [1]) == []
    assert reader.capacity_bytes == 16 * 1024
    assert receive(reader, whole[-1:], [1]) == [(framing.MESSAGE, 3, b"slow" * 2_000)]


@pytest.mark.parametrize(
    "first, reason",
    [
        (b"GET / HTTP/1.1\r\n", "http"),
        (b"POST /put HTTP/1.1\r\n", "http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http"),
        (b"HTTP/1.1 400 Bad Request\r\n", "http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "tls"),
        (b"\x16\x03\x01\x00\xee\x01\x00\x00\xea\x03\x03\x00", "tls"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "ssh"),
        (b"\x00\x00\x00\x00", "length"),
        (b"\x08\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00", "kind"),
        (b"\x08\x00\x00\x00\x01\x01\x00\x00\x01\x00\x00\x00", "flags"),
        (b"\x08\x00\x00\x00\x01\x00\x01\x00\x01\x00\x00\x00", "header"),
        (b"\x08\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00", "header"),
    ],
)
def test_other_protocols_and_broken_frames_are_told_apart(first: bytes, reason: str) -> None:
    reader = FrameReader(10_000_000)
    assert reader.feed(first) == []
    assert reader.failure is not None and reader.failure.facts["reason"] == reason


def test_an_http_verb_later_on_is_a_bad_length_not_a_browser() -> None:
    reader = FrameReader(LENGTH_MAX)
    assert len(reader.feed(oracle.encode((framing.MESSAGE, 1, b"")) + b"GET / HTTP/1.1")) == 1
    assert reader.failure is not None and reader.failure.facts["reason"] == "length"


def test_kinds_that_may_not_come_are_refused() -> None:
    reader = FrameReader(LENGTH_MAX, accepts=1 << framing.MESSAGE)
    assert reader.feed(oracle.encode((framing.PUT_OK, 1, 0, 0, 0, 0, 0, False))) == []
    assert reader.failure is not None and reader.failure.facts["reason"] == "state"


def test_a_longer_header_from_a_newer_peer_is_skipped_over() -> None:
    reader = FrameReader(LENGTH_MAX)
    (put,) = reader.feed(oracle.frame(framing.PUT, 1, b"u" * 16 + bytes(8) + b"newer fields", b"batch"))
    assert bytes(put.batch) == b"batch"


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a" * 513])
def test_an_application_name_that_is_none_is_refused(name: bytes) -> None:
    reader = FrameReader(LENGTH_MAX)
    assert reader.feed(oracle.frame(framing.FETCH, 1, bytes(48) + name)) == []
    assert reader.failure is not None and reader.failure.facts["reason"] == "application"


def test_a_put_is_a_view_until_the_next_read_and_its_memory_stays_valid_after() -> None:
    reader = FrameReader(LENGTH_MAX)
    (put,) = reader.feed(oracle.encode((framing.PUT, 1, bytes(16), 5, b"first batch")))
    view = put.batch
    assert view.readonly and bytes(view) == bytes(memoryview(put)) == b"first batch"
    reader.feed(oracle.encode((framing.PUT, 2, bytes(16), 5, b"other")))
    for size in (20_000, 40_000):
        reader.feed(oracle.encode((framing.MESSAGE, 2, bytes(size))))
    del reader, put
    assert len(bytes(view)) == len(b"first batch"), "the block outlives its reader"


def test_fetched_batches_outlive_their_reader() -> None:
    stored = b"SK\x01\0" + (212).to_bytes(4, "little") + b"x" * 204
    reader = FrameReader(LENGTH_MAX)
    (fetched,) = reader.feed(oracle.encode((framing.FETCH_OK, 1, 9, 0, 9, 9, [stored, stored])))
    reader.feed(bytes(8))
    del reader
    assert [bytes(batch) for batch in fetched.batches] == [stored, stored]
    assert all(batch.readonly and batch.obj is fetched.batches[0].obj for batch in fetched.batches)


def test_a_count_beyond_the_room_is_our_own_mistake() -> None:
    reader = FrameReader(LENGTH_MAX)
    room = len(reader.get_buffer())
    for count in (-1, room + 1):
        with pytest.raises(ValueError):
            reader.buffer_updated(count)


@pytest.mark.parametrize("shard", [b"", b"x" * 15, b"x" * 17])
def test_a_writer_takes_only_whole_uuids(shard: bytes) -> None:
    writer = FrameWriter()
    with pytest.raises(ValueError):
        writer.put(1, shard, 0, b"")
    with pytest.raises(ValueError):
        writer.fetch(1, shard, 0, 0, 0)
    assert writer.take() == []


def test_large_payloads_are_referred_to_and_small_ones_copied() -> None:
    writer, large = FrameWriter(), bytes(100_000)
    writer.put(1, bytes(16), 0, b"small")
    writer.put(2, bytes(16), 0, large)
    writer.put(3, bytes(16), 0, memoryview(b"small"))
    parts = writer.take()
    assert len(parts) == 3 and parts[1] is large


def test_frames_and_blocks_are_freed() -> None:
    before = debug.live()
    draw = random.Random(7)
    reader = FrameReader(LENGTH_MAX)
    for _ in range(50):
        puts = [oracle.encode((framing.PUT, 1, bytes(16), 5, bytes(draw.randrange(30_000)))) for _ in range(5)]
        receive(reader, b"".join(puts), [draw.randrange(1, 60_000)])
    del reader
    gc.collect()
    assert debug.live() == before
