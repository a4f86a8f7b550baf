"""Sections and acknowledgements: what is damaged or cut is refused or waited for; nothing is read past the end."""

from __future__ import annotations

import struct

import pytest

from streamkit._core.framing import Acknowledgement, FrameReader, FrameWriter, Section
from tests import oracles_framing as oracle

SHARD, OTHER = bytes(range(16)), bytes(range(16, 32))


def batch(base: int, count: int, size: int = 112) -> bytes:
    made = bytearray(struct.pack("<2sBBIQI", b"SK", 1, 0, size, base, 7)) + bytes(size - 20)
    made[56:60] = count.to_bytes(4, "little")
    return bytes(made)


def sections_of(*batches: list[bytes]) -> bytes:
    writer = FrameWriter()
    writer.begin_replicate()
    for number, stored in enumerate(batches):
        writer.section(SHARD, 7, 1, 5, 6, number, 0, 99, 5, stored)
    writer.end_replicate()
    return b"".join(writer.take())


def reader() -> FrameReader:
    return FrameReader(1 << 24, accepts=oracle.ALL_KINDS)


def test_a_section_says_where_its_batches_end():
    writer = FrameWriter()
    writer.begin_replicate()

    assert writer.section(SHARD, 7, 0, 5, 6, 0, 0, 0, 0, [batch(5, 3), batch(8, 4, 9000)]) == (12, 9112)
    assert writer.section(OTHER, 7, 0, 20, 6, 0, 0, 0, 0, []) == (20, 0)
    assert writer.section(OTHER, 7, 0, 20, 6, 0, 0, 0, 0, [memoryview(batch(20, 1))]) == (21, 112)
    assert writer.end_replicate() == 3
    assert writer.queued_bytes == sum(map(len, writer.take()))


def test_large_batches_are_referred_to_and_small_ones_copied():
    large, small = batch(5, 1, 200_000), batch(6, 1)
    writer = FrameWriter()
    writer.message(3, b"before")
    writer.begin_replicate()
    writer.section(SHARD, 7, 0, 5, 6, 0, 0, 0, 0, [large, small])
    writer.end_replicate()
    parts = writer.take()

    assert [part is large for part in parts] == [False, True, False]
    assert [bytes(section) for section in reader().feed(b"".join(parts))[1:]] == [large + small]


def test_a_frame_without_sections_is_taken_back():
    writer = FrameWriter()
    writer.message(1, b"kept")
    before = writer.queued_bytes
    writer.begin_replicate()

    assert writer.end_replicate() == 0
    assert writer.queued_bytes == before == sum(map(len, writer.take()))


def test_a_frame_is_begun_once():
    writer = FrameWriter()
    with pytest.raises(AssertionError):
        writer.end_replicate()
    writer.begin_replicate()
    with pytest.raises(AssertionError):
        writer.begin_replicate()


def test_a_section_is_a_buffer_over_its_batches():
    stored = [batch(5, 2), batch(7, 2)]
    kept = reader()
    (section,) = kept.feed(sections_of(stored))

    assert memoryview(section).readonly
    assert bytes(section.batches) == b"".join(stored)
    assert len(section) == 224


def test_sections_made_by_hand_are_like_those_read():
    made = Section(SHARD, 7, 1, 5, 6, 0, 0, 99, 5, batch(5, 1))
    (read,) = reader().feed(sections_of([batch(5, 1)]))

    assert repr(made) == repr(read)
    assert bytes(made) == bytes(read)


@pytest.mark.parametrize("stored", [[], [batch(5, 1)], [batch(5, 3), batch(8, 1, 5000)]])
def test_every_byte_flipped_is_refused_or_another_frame_as_the_oracle_says(stored):
    sound = sections_of(stored, [batch(5, 1)])
    places = [*range(300), *range(len(sound) - 200, len(sound))]
    for at in (at for at in places if 0 <= at < len(sound)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(sound)
            damaged[at] ^= change
            expected, reason = oracle.parse(bytes(damaged), 1 << 24)
            judged = reader()
            found = [bytes(part) for part in judged.feed(bytes(damaged)) if isinstance(part, Section)]
            assert found == [part[1][-1] for part in oracle.flat(expected) if part[0] == oracle.REPLICATE]
            assert (judged.failure.facts["reason"] if judged.failure else None) in (reason, "tls")


def test_every_cut_waits_for_the_rest():
    sound = sections_of([batch(5, 3)], [batch(8, 1)])
    for cut in range(len(sound)):
        kept = reader()
        assert kept.feed(sound[:cut]) == []
        assert kept.failure is None
        assert [bytes(part) for part in kept.feed(sound[cut:])] == [batch(5, 3), batch(8, 1)]


def test_every_cut_that_claims_to_be_whole_is_refused_as_a_whole():
    sound = sections_of([batch(5, 3)], [batch(8, 1)])
    for cut in range(20, len(sound)):
        kept = reader()
        assert kept.feed((cut - 4).to_bytes(4, "little") + sound[4:cut]) == []
        assert kept.failure is not None and kept.failure.facts["reason"] == "sections"


def test_acknowledgements_come_one_by_one_and_in_order():
    writer = FrameWriter()
    writer.replicated([(SHARD, OTHER, 7, 0, 99, 120), (OTHER, SHARD, 2**32 - 1, 4, 2**64 - 1, 0)])
    first, second = reader().feed(b"".join(writer.take()))

    assert isinstance(first, Acknowledgement)
    assert (first.shard, first.incarnation, first.epoch, first.verdict) == (SHARD, OTHER, 7, 0)
    assert (first.end, first.written) == (99, 120)
    assert (second.epoch, second.verdict, second.end) == (2**32 - 1, 4, 2**64 - 1)


@pytest.mark.parametrize("claimed", [0, 1, 3, 2**32 - 1])
def test_a_wrong_count_of_acknowledgements_is_refused(claimed):
    writer = FrameWriter()
    writer.replicated([(SHARD, OTHER, 7, 0, 99, 0)] * 2)
    damaged = bytearray(b"".join(writer.take()))
    damaged[12:16] = claimed.to_bytes(4, "little")
    judged = reader()

    assert judged.feed(bytes(damaged)) == []
    assert judged.failure is not None and judged.failure.facts["reason"] == "acknowledgements"


def test_clients_and_brokers_do_not_take_what_only_nodes_say():
    judged = FrameReader(1 << 24)

    assert judged.feed(sections_of([batch(5, 1)])) == []
    assert judged.failure is not None and judged.failure.facts["reason"] == "state"


def test_a_uuid_of_another_size_is_our_own_mistake():
    writer = FrameWriter()
    writer.begin_replicate()
    with pytest.raises(ValueError, match="16 bytes"):
        writer.section(b"short", 7, 0, 5, 6, 0, 0, 0, 0, [])
    with pytest.raises(ValueError, match="16 bytes"):
        Acknowledgement(SHARD, b"short", 1, 0, 1)
