"""Segments, indexes, producers' state and super slots: sound bytes are read back, all others are refused quietly."""

import random

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core import segment
from streamkit._core.index import SparseIndex
from streamkit._core.producers import ProducerTable
from streamkit.storage.checkpoint import pack_epochs, unpack_epochs
from streamkit.storage.journal_files import make_header, read_header
from streamkit.storage.super_slots import NodeFacts, ShardFacts, read_slots
from tests.oracles_storage import SHARDS, crc32c, seal

SEED = crc32c(SHARDS[0])


def stamped(batch, base, epoch=1, when=5):
    head = bytearray(batch)
    head[8:16] = base.to_bytes(8, "little")
    head[16:20] = epoch.to_bytes(4, "little")
    head[24:32] = when.to_bytes(8, "little")
    head[20:24] = crc_from(SEED, bytes(head[:20] + head[24:36])).to_bytes(4, "little")
    return bytes(head)


def crc_from(seed, data):
    return google_crc32c.extend(seed, data)


def segment_of(values, base=0):
    parts, at = [], base
    for value in values:
        parts.append(stamped(seal([value]), at))
        at += 1
    return parts


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(0, 1 << 40))
def test_a_walk_follows_whole_batches_to_the_end(values, base):
    parts = segment_of(values, base)

    found = segment.walk(b"".join(parts), 7, base, SEED)

    assert (found.sequence, found.position) == (base + len(values), 7 + sum(map(len, parts)))
    assert [(batch[0], batch[1]) for batch in found.batches] == [
        (7 + sum(map(len, parts[:i])), base + i) for i in range(len(parts))
    ]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.data())
def test_a_walk_stops_before_a_changed_byte(values, data):
    parts = segment_of(values)
    whole = bytearray(b"".join(parts))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    sound = 0
    while sum(map(len, parts[: sound + 1])) <= place:
        sound += 1

    found = segment.walk(bytes(whole), 0, 0, SEED)

    assert found.sequence == sound


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 10_000))
def test_a_segment_cut_short_anywhere_says_so(values, cut):
    whole = b"".join(segment_of(values))
    short = whole[: len(whole) - (cut % len(whole) or 1)]

    found = segment.walk(short, 0, 0, SEED)

    assert found.position <= len(short)
    assert found.stop == segment.SHORT or found.position == len(short)


@given(st.binary(max_size=400), st.integers(0, 1 << 62))
def test_no_bytes_upset_a_walk_or_a_search(data, sequence):
    found = segment.walk(data, 0, sequence, SEED)

    assert found.position == 0 and found.batches == []
    assert segment.find_batch(data, SEED, 0, 1 << 63) is None
    assert segment.read_trailer(data, SEED) is None


@given(st.binary(max_size=200), st.integers(0, 5), st.integers(0, 111))
def test_a_search_finds_the_first_header_behind_damage(junk, index, cut):
    parts = segment_of([b"x" * 50] * 6)
    hidden = parts[index][: cut + 1]

    found = segment.find_batch(junk + hidden[:1] + b"".join(parts[index:]), SEED, 0, 100)

    assert found is not None
    assert found[1] == index


def test_a_stale_batch_of_an_older_epoch_ends_the_walk():
    data = stamped(seal([b"a"]), 0, epoch=5) + stamped(seal([b"b"]), 1, epoch=4)

    found = segment.walk(data, 0, 0, SEED)

    assert (found.sequence, found.stop) == (1, segment.BAD)


def test_a_trailer_says_what_it_was_told():
    facts = {
        "base": 3, "end": 9, "bytes": 1000, "batches": 2, "first_append_ms": 5, "last_append_ms": 6, "headers_crc": 7,
    }  # fmt: skip

    raw = segment.make_trailer(SEED, **facts)

    assert segment.read_trailer(raw, SEED) == facts
    assert segment.read_trailer(raw, SEED + 1) is None
    assert segment.walk(raw, 0, 0, SEED).stop == segment.TRAILER


@given(
    st.lists(st.tuples(st.integers(1, 100_000), st.integers(1, 50), st.integers(0, 5)), max_size=40),
    st.integers(0, 3000),
)
def test_an_index_finds_the_last_entry_at_or_before(steps, wanted):
    index, kept, at, sequence, when = SparseIndex(), [(0, 0, -1)], 0, 0, 0
    for size, records, passed in steps:
        at, sequence, when = at + size, sequence + records, when + passed
        index.offer(sequence, at, when)
        if at >= kept[-1][1] + 32768:
            kept.append((sequence, at, when))

    assert index.find(wanted) == [entry[:2] for entry in kept if entry[0] <= wanted][-1]
    assert index.find_time(wanted % 100) == [entry[:2] for entry in kept if entry[2] < wanted % 100][-1]
    again = SparseIndex.from_bytes(index.to_bytes(), 1 << 40)
    assert again.to_bytes() == index.to_bytes()


@given(st.binary(max_size=500), st.integers(0, 1 << 33))
def test_any_bytes_make_an_index_that_only_grows(data, size):
    index = SparseIndex.from_bytes(data, size)

    raw = index.to_bytes()
    places = [int.from_bytes(raw[i + 4 : i + 8], "little") for i in range(0, len(raw), 16)]
    assert places == sorted(set(places))
    assert all(place < size for place in places)


def test_a_producers_snapshot_reads_back_and_refuses_any_changed_byte():
    table = ProducerTable(100)
    for i in range(30):
        table.replay(i % 3 + 1, 1, i // 3 * 2, 2, i * 2, 1000 + i)

    raw = table.to_bytes(555, 60)
    again = ProducerTable.from_bytes(raw, 100)

    assert again is not None
    assert (len(again[0]), again[1], again[2]) == (3, 555, 60)
    assert again[0].to_bytes(555, 60) == raw
    draw = random.Random(1)
    for _ in range(200):
        place = draw.randrange(len(raw))
        changed = bytearray(raw)
        changed[place] ^= 1 << draw.randrange(8)
        assert ProducerTable.from_bytes(changed, 9) is None
        assert ProducerTable.from_bytes(raw[:place], 9) is None


@given(st.binary(max_size=600))
def test_small_files_refuse_any_bytes(data):
    assert ProducerTable.from_bytes(data, 5) is None
    assert read_slots(data) is None
    assert unpack_epochs(data) is None or data[:4] == b"SKE1"
    assert read_header(data) is None


@pytest.mark.parametrize("facts", [
    ShardFacts(incarnation=bytes(range(16)), promised_epoch=3, certain=False, memory_mode=True, has_producers=True,
               log_start=1, sequence=2, segment_base=3, position=4, batches=5, first_append_ms=6, last_append_ms=7,
               headers_crc=8, epoch=9),
    NodeFacts(boot_id="0f1e2d3c-0000-1111-2222-333344445555", clean=True),
])  # fmt: skip
def test_facts_read_back_as_written(facts):
    assert type(facts).from_bytes(facts.to_bytes()) == facts
    assert type(facts).from_bytes(facts.to_bytes() + b"x") is None


def test_epochs_and_journal_headers_read_back():
    assert unpack_epochs(pack_epochs([(1, 0), (4, 1 << 40)])) == [(1, 0), (4, 1 << 40)]
    assert read_header(make_header(9, bytes(16), 4096)) == (9, bytes(16), 4096)
