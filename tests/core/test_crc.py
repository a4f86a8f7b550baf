"""CRC-32C agrees with the bitwise twin and with google-crc32c, at every length, offset and cut."""

from __future__ import annotations

import random

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import crc32c
from tests import oracles_batch as oracles

NOISE = random.Random(20_26).randbytes(70_000)


def test_crc_of_every_short_length_and_around_each_lane() -> None:
    edges = (1024, 3 * 1024, 6 * 1024, 3 * 1024 + 384, 65_536)
    for size in [*range(400), *(edge + more for edge in edges for more in (-1, 0, 1, 7, 8))]:
        assert crc32c(NOISE[:size]) == google_crc32c.value(NOISE[:size])


@given(st.binary(max_size=200))
def test_crc_is_the_twins(data: bytes) -> None:
    assert crc32c(data) == oracles.crc32c(data)


@given(start=st.integers(0, 64), size=st.integers(0, 9_000), cut=st.integers(0, 9_000))
def test_crc_goes_on_where_it_stopped(start: int, size: int, cut: int) -> None:
    data = memoryview(NOISE)[start : start + size]
    cut = min(cut, size)

    assert crc32c(data[cut:], crc32c(data[:cut])) == google_crc32c.value(bytes(data))
