"""Partition key → hash key → shard, as hashlib and a linear search say."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.hashing import ShardTable, hash_key
from streamkit.errors import InvalidUse
from streamkit.model.shard import even_ranges
from tests import oracles_batch as oracles


def test_hash_keys_are_md5_of_every_length() -> None:
    data = bytes(range(256)) * 2
    for size in range(300):
        assert hash_key(data[:size]) == hashlib.md5(data[:size]).digest()
    assert hash_key("clé") == hashlib.md5("clé".encode()).digest()


numbers = st.integers(0, 2**128 - 1)


@given(cuts=st.sets(st.integers(1, 2**128 - 1), max_size=12), closed=st.integers(-1, 5), number=numbers)
def test_the_table_finds_what_a_linear_search_finds(cuts: set[int], closed: int, number: int) -> None:
    edges = [0, *sorted(cuts), 2**128]
    ranges: list[tuple[int, int] | None] = list(itertools.pairwise(edges))
    if 0 <= closed < len(ranges):
        ranges[closed] = None
    table = ShardTable(ranges)

    for asked in {number, *cuts, *(cut - 1 for cut in cuts), 0, 2**128 - 1}:
        assert table.find(asked.to_bytes(16, "big")) == oracles.find_shard(ranges, asked)


def test_keys_spread_over_even_ranges_as_their_hashes_do() -> None:
    ranges = even_ranges(7)
    table = ShardTable(reversed(ranges))

    for i in range(200):
        key = f"customer-{i}"
        assert table.find_key(key) == 6 - oracles.find_shard(list(ranges), oracles.hash_key(key.encode()))


@pytest.mark.parametrize("ranges", [[(0, 5), (4, 9)], [(5, 5)], [(0, 2**128 + 1)], [(9, 3)]])
def test_impossible_ranges_are_refused(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidUse):
        ShardTable(ranges)
