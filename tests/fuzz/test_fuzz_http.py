"""The short form of fuzz_http.py: sound conversations, damaged at random, and frames that nobody would send."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_http import BLOCK, PREFACE, one_input, seeds

COUNT = max(60, settings.default.max_examples // 10)


@pytest.mark.fuzz
@settings(max_examples=COUNT)
@given(
    seed=st.sampled_from(seeds()),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    cut=st.tuples(st.integers(0, 400), st.integers(0, 400)),
    noise=st.binary(max_size=30),
    pieces=st.integers(0, 255),
)
def test_a_damaged_conversation_is_answered_or_ended(
    seed: bytes, edits: list[tuple[int, int]], cut: tuple[int, int], noise: bytes, pieces: int
) -> None:
    damaged = bytearray(seed)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    one_input(bytes([pieces]) + bytes(damaged))
    one_input(bytes([pieces]) + bytes(damaged[: cut[0]]) + noise + bytes(damaged[cut[1] :]))


frames = st.tuples(
    st.integers(0, 11), st.integers(0, 255), st.integers(0, 9),
    st.one_of(st.just(BLOCK), st.binary(max_size=40), st.just(b"\0\0\0\1"), st.just(bytes(8))),
)  # fmt: skip


@pytest.mark.fuzz
@settings(max_examples=COUNT)
@given(sequence=st.lists(frames, max_size=12), pieces=st.integers(0, 255), lie=st.integers(-2, 2))
def test_any_sequence_of_frames_is_answered_or_ended(
    sequence: list[tuple[int, int, int, bytes]], pieces: int, lie: int
) -> None:
    sent = PREFACE
    for kind, flags, stream, payload in sequence:
        length = max(0, len(payload) + (lie if kind == 9 else 0))
        sent += length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    one_input(bytes([pieces]) + sent)
