"""The short form of fuzz_peers.py: sound conversations, damaged at random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.fuzz_peers import one_input, seeds


@pytest.mark.fuzz
@given(
    seed=st.sampled_from(seeds()),
    edits=st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 255)), max_size=6),
    cut=st.tuples(st.integers(0, 1100), st.integers(0, 1100)),
    noise=st.binary(max_size=30),
)
def test_a_damaged_conversation_is_refused_or_understood_the_same_in_any_pieces(
    seed: bytes, edits: list[tuple[int, int]], cut: tuple[int, int], noise: bytes
) -> None:
    damaged = bytearray(seed)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    one_input(bytes(damaged))
    one_input(bytes(damaged[: cut[0]] + noise + damaged[cut[1] :]))


@pytest.mark.fuzz
@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_waited_for(noise: bytes) -> None:
    one_input(noise)


@pytest.mark.parametrize("seed", seeds()[6::3])
def test_every_cut_of_a_sound_conversation_waits_for_the_rest(seed: bytes) -> None:
    for cut in range(1, len(seed)):
        one_input(seed[:cut])
