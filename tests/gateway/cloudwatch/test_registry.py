"""The registry keeps the newest of each series, and never more than it may."""

from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.cloudwatch.registry import Registry, SeriesName, Statistics


def name(metric, **dimensions):
    return SeriesName("1", "r", "app", metric, tuple(sorted(dimensions.items())))


def one(value):
    return Statistics(1.0, value, value, value)


def test_the_newest_report_is_shown_and_all_are_counted():
    registry = Registry()
    registry.put(name("Lag"), one(3.0), 1_000)
    registry.put(name("Lag"), Statistics(4.0, 8.0, 1.0, 3.0), 3_000)
    registry.put(name("Lag"), one(9.0), 2_000)                      # late

    held = registry.get(name("Lag"))
    assert (held.last.mean, held.time_ms) == (2.0, 3_000)
    assert (held.count, held.sum) == (6.0, 20.0)
    assert registry.reports == 3


def test_series_that_are_silent_longest_make_room():
    registry = Registry(series_max=2)
    for metric in ("a", "b", "a", "c"):
        registry.put(name(metric), one(1.0), 0)

    assert [series.name.metric for series in registry.series()] == ["a", "c"]
    assert registry.forgotten == 1


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.floats(allow_nan=False))))
def test_neither_series_nor_their_names_grow_beyond_the_bounds(reports):
    registry = Registry(series_max=5, name_characters_max=100)
    for metric, value, number in reports:
        registry.put(name(metric, shard=value), one(number), 0)

        held = list(registry.series())
        assert len(held) == len(registry) <= 5
        assert sum(series.name.characters for series in held) <= 100
    assert registry.reports == len(reports)
