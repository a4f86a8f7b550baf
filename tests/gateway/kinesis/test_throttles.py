"""Token buckets on a clock that the test turns."""

from types import SimpleNamespace

import pytest

from streamkit.gateway.errors import ApiError
from streamkit.gateway.kinesis.config import AWS_LIMITS, LIMITS_TAG, Limits
from streamkit.gateway.kinesis.throttles import _CONTROL, Throttles

MIB = 1 << 20


def stream(limits=""):
    return SimpleNamespace(note=SimpleNamespace(tags={LIMITS_TAG: limits} if limits else {}))


def test_nothing_is_throttled_unless_it_is_switched_on():
    throttles = Throttles(Limits())
    for _ in range(100):
        assert throttles.write(stream(), b"a", 10_000, 100 * MIB, 0)
        assert throttles.read(stream(), b"a", 0) and throttles.iterator(stream(), b"a", 0)
        throttles.returned(stream(), b"a", 100 * MIB, 0)
        assert throttles.subscribe(stream(), b"a", 0)
    assert not throttles.counts("DescribeStream")


@pytest.mark.parametrize(("server", "tag", "limited"), [
    (Limits(), "aws", True), (AWS_LIMITS, "", True), (AWS_LIMITS, "off", False), (Limits(), "", False),
    (AWS_LIMITS, "other", True),
])  # fmt: skip
def test_a_streams_tag_goes_before_the_server(server, tag, limited):
    throttles = Throttles(server)
    assert throttles.write(stream(tag), b"a", 1_000, 1, 0)
    assert throttles.write(stream(tag), b"a", 1, 1, 0) != limited


def test_records_of_a_second_come_back_with_it():
    throttles = Throttles(AWS_LIMITS)
    assert throttles.write(stream(), b"a", 1_000, 1, 0)
    assert not throttles.write(stream(), b"a", 1, 1, 0)
    assert throttles.write(stream(), b"b", 1_000, 1, 0)        # another shard
    assert not throttles.write(stream(), b"a", 501, 1, 500)
    assert throttles.write(stream(), b"a", 500, 1, 500)
    assert throttles.write(stream(), b"a", 1_000, 1, 10_000)   # no more than a second is saved up
    assert not throttles.write(stream(), b"a", 1, 1, 10_000)


def test_a_put_that_is_refused_takes_nothing():
    throttles = Throttles(AWS_LIMITS)
    assert throttles.write(stream(), b"a", 1, 10 * MIB, 0)
    for _ in range(10):
        assert not throttles.write(stream(), b"a", 100, MIB, 500)
    assert throttles.write(stream(), b"a", 1_000, MIB, 1_000)


def test_one_large_put_uses_up_ten_seconds():
    throttles = Throttles(AWS_LIMITS)
    assert throttles.write(stream(), b"a", 1, 10 * MIB, 0)
    assert not throttles.write(stream(), b"a", 1, 10 * MIB, 9_990)
    assert throttles.write(stream(), b"a", 1, 10 * MIB, 20_000)


def test_reads_are_counted_by_calls_and_by_what_they_returned():
    throttles = Throttles(AWS_LIMITS)
    assert [throttles.read(stream(), b"a", 0) for _ in range(6)] == [True] * 5 + [False]
    assert throttles.read(stream(), b"a", 200)
    throttles.returned(stream(), b"a", 10 * MIB, 1_000)
    assert not throttles.read(stream(), b"a", 4_900)
    assert throttles.read(stream(), b"a", 5_100)


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    throttles = Throttles(AWS_LIMITS)
    assert throttles.write(stream(), b"a", 1_000, 1, 5_000)
    assert not throttles.write(stream(), b"a", 1, 1, 4_000)
    assert not throttles.write(stream(), b"a", 1, 1, 4_000)


def test_calls_of_an_account_have_rates_of_their_own():
    throttles = Throttles(AWS_LIMITS)
    for operation, rate in _CONTROL.items():
        assert throttles.counts(operation)
        for _ in range(int(max(rate, 10))):
            throttles.control(operation, "1", "r", 0)
        with pytest.raises(ApiError, match="LimitExceededException: Rate exceeded"):
            throttles.control(operation, "1", "r", 0)
        throttles.control(operation, "2", "r", 0)
        throttles.control(operation, "1", "q", 0)
    assert not throttles.counts("GetRecords")


def test_memory_of_buckets_is_bounded():
    throttles = Throttles(AWS_LIMITS)
    for number in range(100_100):
        throttles.iterator(stream(), b"%d" % number, 0)
    assert len(throttles._buckets) <= 100_000
