"""The short form of fuzz_batch.py: sound batches, damaged at random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.fuzz_batch import one_input, seeds


@pytest.mark.fuzz
@given(
    seed=st.sampled_from(seeds()),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    cut=st.tuples(st.integers(0, 400), st.integers(0, 400)),
    noise=st.binary(max_size=30),
)
def test_a_damaged_batch_is_corrupt_or_holds_whole_records(
    seed: bytes, edits: list[tuple[int, int]], cut: tuple[int, int], noise: bytes
) -> None:
    damaged = bytearray(seed)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    one_input(bytes(damaged))
    one_input(bytes(damaged[: cut[0]] + noise + damaged[cut[1] :]))


@pytest.mark.fuzz
@given(head=st.sampled_from(seeds()), noise=st.binary(max_size=300))
def test_a_sound_header_before_noise_is_not_believed(head: bytes, noise: bytes) -> None:
    one_input(head[:112] + noise)
