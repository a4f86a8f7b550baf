"""Notes: changed together or not at all, listed in pages, certain also when the store loses answers."""

import random

import pytest

from streamkit.errors import InvalidRequest, StoreUnavailable
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.notes import Notes
from streamkit.metadata.store import Swap
from streamkit.model.note import NOTE_BYTES_MAX, NOTE_KEY_BYTES_MAX, NOTE_SWAP_BYTES_MAX, NOTE_SWAPS_MAX
from streamkit.runtime.real import real_runtime

EVERYTHING = bytes(range(256)) * 2


@pytest.fixture
def notes(store):
    return Notes(store, real_runtime().random)


async def keys_of(notes, prefix, count_max=10, bytes_max=1 << 20):
    found, after, more = [], "", True
    while more:
        page, more = await notes.page(prefix, after, count_max, bytes_max)
        assert page or not more
        found += [note.key for note in page]
        after = found[-1] if found else ""
    return found


async def test_a_note_comes_back_byte_for_byte(notes):
    assert await notes.read("a") == (None, 0)

    first = await notes.swap([("a", 0, EVERYTHING), ("b", 0, b"")])

    assert await notes.read("a") == (EVERYTHING, first)
    assert await notes.read("b") == (b"", first)


async def test_notes_change_together_or_not_at_all(notes):
    first = await notes.swap([("a", 0, b"1")])

    assert await notes.swap([("b", 0, b"x"), ("a", 0, b"2")]) is None
    assert await notes.swap([("b", 0, b"x"), ("a", first + 9, b"2")]) is None
    assert await notes.read("b") == (None, 0)
    second = await notes.swap([("a", first, None), ("b", 0, b"x")])
    assert second > first
    assert await notes.read("a") == (None, 0)
    assert await notes.read("b") == (b"x", second)
    assert await notes.swap([("a", first, b"3")]) is None
    assert await notes.swap([("a", 0, b"3")]) > second


async def test_as_many_and_as_large_as_allowed(notes):
    revision = await notes.swap([(f"k{i:03}", 0, bytes([i])) for i in range(NOTE_SWAPS_MAX)])
    assert await notes.swap([(f"k{i:03}", revision, None) for i in range(NOTE_SWAPS_MAX)]) > revision
    assert await keys_of(notes, "k") == []

    large = EVERYTHING * (NOTE_BYTES_MAX // len(EVERYTHING))
    long = ["é" * (NOTE_KEY_BYTES_MAX // 2 - 1) + letter * 2 for letter in "xy"]
    assert await notes.swap([(key, 0, large) for key in long]) is not None
    assert (await notes.read(long[0]))[0] == large


@pytest.mark.parametrize("swaps", [
    [],
    [("", 0, b"")],
    [("a\n", 0, b"")],
    [("a\0", 0, b"")],
    [("a" * (NOTE_KEY_BYTES_MAX + 1), 0, b"")],
    [("é" * (NOTE_KEY_BYTES_MAX // 2 + 1), 0, b"")],
    [("\ud800", 0, b"")],
    [("a", 0, bytes(NOTE_BYTES_MAX + 1))],
    [("a", -1, b"")],
    [("a", 1 << 63, b"")],
    [("a", 0, b"1"), ("a", 0, b"2")],
    [(f"k{i}", 0, b"") for i in range(NOTE_SWAPS_MAX + 1)],
    [(f"k{i}", 0, bytes(NOTE_SWAP_BYTES_MAX // 3)) for i in range(4)],
])  # fmt: skip
async def test_what_is_no_note_is_refused(runtime, swaps):
    notes = Notes(MemoryStore(runtime.clock), real_runtime().random)

    with pytest.raises(InvalidRequest):
        await notes.swap(swaps)
    with pytest.raises(InvalidRequest):
        await notes.read("")
    with pytest.raises(InvalidRequest):
        await notes.page("\n", "", 1, 1)


async def test_a_list_comes_in_pages_in_the_order_of_the_keys(notes, store):
    names = ["a", "b", "b!", "b/1", "b/2", "ba", "bé", "bßx", "b\U0001f600", "b\uffee", "c"]
    names += [f"b/{i:04}" for i in range(150)]
    random.Random(1).shuffle(names)
    for name in names:
        await notes.swap([(name, 0, name.encode())])
    await store.compare_and_swap_many([Swap("notez", 0, b""), Swap("note", 0, b"")])

    assert await keys_of(notes, "b", count_max=7) == sorted(name for name in names if name.startswith("b"))
    assert await keys_of(notes, "") == sorted(names)
    assert await keys_of(notes, "b/", bytes_max=100) == sorted(name for name in names if name.startswith("b/"))
    page, more = await notes.page("b/", "b/0148", 100, 1 << 20)
    assert ([note.key for note in page], more) == (["b/0149", "b/1", "b/2"], False)
    assert page[1].value == b"b/1" and page[1].revision > 0
    assert await notes.page("b", "z", 10, 1 << 20) == ([], False)
    assert [note.key for note in (await notes.page("b", "a", 1, 1 << 20))[0]] == ["b"]
    assert await notes.page("c", "", 1, 1 << 20) == ([*(await notes.page("c", "", 9, 9))[0]], False)


async def test_ten_thousand_notes_are_listed_in_pages(notes):
    names = [f"consumers/stream/{i:05}" for i in range(10_000)]
    for at in range(0, len(names), NOTE_SWAPS_MAX):
        await notes.swap([(name, 0, b"x" * 100) for name in names[at : at + NOTE_SWAPS_MAX]])

    assert await keys_of(notes, "consumers/", count_max=1_000, bytes_max=2 << 20) == names


class Losing:
    """A store that carries a change out and loses the answer; what `meanwhile` does comes between that and a retry."""

    def __init__(self, store, lost, meanwhile=None):
        self.store, self.lost, self.meanwhile = store, lost, meanwhile
        self.read = store.read

    async def compare_and_swap_many(self, swaps):
        revision = await self.store.compare_and_swap_many(swaps)
        if self.lost:
            self.lost -= 1
            if self.meanwhile is not None:
                await self.meanwhile()
            raise StoreUnavailable("no answer", try_="again", store="", outcome="unknown")
        return revision


async def test_a_change_whose_answer_is_lost_is_told_as_made(notes, store):
    losing = Notes(Losing(store, lost=1), real_runtime().random)

    revision = await losing.swap([("a", 0, b"1"), ("b", 0, b"2")])

    assert await notes.read("a") == (b"1", revision)


async def test_what_was_perhaps_overwritten_is_not_said_to_be_undone(notes, store):
    async def meanwhile():
        (_, revision) = await notes.read("a")
        await notes.swap([("a", revision, b"1")])

    first = await notes.swap([("a", 0, b"0")])
    losing = Notes(Losing(store, lost=1, meanwhile=meanwhile), real_runtime().random)

    # It was made, and overwritten at once with the same bytes. Told that nothing was done, a caller would do it again.
    with pytest.raises(StoreUnavailable) as raised:
        await losing.swap([("a", first, b"1")])
    assert raised.value.facts["outcome"] == "unknown"


async def test_a_deletion_whose_answer_is_lost_is_told_as_made(notes, store):
    first = await notes.swap([("a", 0, b"0"), ("b", 0, b"0")])
    losing = Notes(Losing(store, lost=1), real_runtime().random)

    assert await losing.swap([("a", first, None), ("b", first, None)]) is not None
    assert await notes.page("", "", 9, 9) == ([], False)


async def test_an_outcome_that_stays_unknown_is_said_to_be(store):
    losing = Notes(Losing(store, lost=9), real_runtime().random)

    with pytest.raises(StoreUnavailable) as raised:
        await losing.swap([("a", 0, b"1")])
    assert raised.value.facts["outcome"] == "unknown"
