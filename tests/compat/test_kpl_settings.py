"""The KPL's keys: taken where they mean something, passed over with one warning where not, refused when unknown."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from streamkit.compat.kpl_settings import kpl_settings, read_kpl_properties
from streamkit.errors import InvalidConfig


def test_a_properties_file_becomes_settings_of_a_producer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "kpl.properties"
    file.write_text(
        "# our producer\nRecordMaxBufferedTime = 50\nRecordTtl=60000\nRequestTimeout: 3000\nFailIfThrottled=true\n"
        "MaxConnections=24\nRegion = eu-west-1\nAggregationEnabled=true\nMaxUserRecordSize=2000\n"
    )

    settings = kpl_settings(read_kpl_properties(file))

    assert settings.producer == {
        "linger_ms": 50, "delivery_timeout_ms": 60_000, "request_timeout_ms": 3_000, "fail_if_throttled": True,
    }  # fmt: skip
    assert settings.record_bytes_max == 2_000
    assert settings.ignored == ("AggregationEnabled", "MaxConnections", "Region")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "kpl.ignored keys=AggregationEnabled,MaxConnections,Region"
    ]


def test_nothing_said_means_the_defaults_of_the_kpl_where_they_differ_in_what_a_program_sees() -> None:
    settings = kpl_settings({})

    assert settings.producer == {"delivery_timeout_ms": 30_000, "fail_if_throttled": False}
    assert settings.record_bytes_max == 1_048_576


def test_names_are_taken_in_any_case_and_with_underscores() -> None:
    settings = kpl_settings({"record_max_buffered_time": 5, "COLLECTIONMAXSIZE": 5_242_880, "RecordTtl": 90_000,
                             "user_record_timeout_in_millis": 1_000})  # fmt: skip

    assert settings.producer["linger_ms"] == 5
    assert settings.producer["batch_bytes_max"] == 1 << 20
    assert settings.producer["delivery_timeout_ms"] == 1_000


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ({"RecordTTL2": "1"}, "RecordTtl"),
        ({"FailIfThrotled": "true"}, "FailIfThrottled"),
        ({"RecordTtl": "99"}, "RecordTtl"),
        ({"RecordTtl": "soon"}, "RecordTtl"),
        ({"RequestTimeout": 600_001}, "RequestTimeout"),
        ({"MaxUserRecordSize": True}, "MaxUserRecordSize"),
        ({"FailIfThrottled": "yes"}, "FailIfThrottled"),
    ],
)
def test_unknown_keys_and_impossible_values_are_refused_with_a_hint(said: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        kpl_settings(said)

    assert hint in caught.value.try_
    assert caught.value.facts["key"] == next(iter(said))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_kpl_properties(tmp_path / "none")
