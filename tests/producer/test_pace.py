"""Windows grow by a batch a round trip and halve when a node throttles; what it asks for wins."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from streamkit.producer.pace import Window, pause_ms
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.real import real_runtime


def test_there_is_no_window_until_something_is_throttled() -> None:
    window = Window(100, 500)

    window.acknowledged(100)

    assert window.bytes == inf
    assert window.admits(10**12, 10**6)


def test_a_throttled_shard_gets_half_of_what_travelled_and_never_less_than_a_batch() -> None:
    window = Window(100, 500)

    window.throttled(400)
    assert window.bytes == 200
    assert window.admits(100, 100)
    assert not window.admits(150, 100)
    window.throttled(200)
    window.throttled(100)

    assert window.bytes == 100
    assert window.admits(0, 5_000)               # one batch may always travel


def test_a_window_grows_by_a_batch_a_round_trip_until_there_is_none() -> None:
    window = Window(100, 500)
    window.throttled(200)
    grown = []
    for _ in range(10):
        for _ in range(int(window.bytes // 100) if window.bytes < inf else 0):
            window.acknowledged(100)
        grown.append(window.bytes)

    assert 170 < grown[0] <= 200
    assert all(after - before <= 101 for before, after in pairwise(grown) if after < inf)
    assert grown[-1] == inf


def test_what_the_broker_asks_for_wins_over_our_own_patience() -> None:
    backoff = Backoff(real_runtime().random, 50, 1_000)

    assert all(300 <= pause_ms(backoff, 300) <= 360 for _ in range(50))
    assert pause_ms(backoff, 0) == 0
    assert 25 <= pause_ms(backoff, None) <= 50
    assert 50 <= pause_ms(backoff, None) <= 100
