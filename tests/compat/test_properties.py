"""The MultiLangDaemon's properties file."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.compat.properties import daemon_settings, parse_properties
from streamkit.errors import InvalidConfig

FILE = r"""
# The script, its arguments; the KCL's sample file looks like this.
executableName = sample_kclpy_app.py  one two
! another comment
streamName: kclpysample
applicationName=Python\
    KCLSample
AwsCredentialsProvider = DefaultCredentialsProvider
processingLanguage = python/3.8
initialPositionInStream = TRIM_HORIZON
regionName = us-east-1
failoverTimeMillis = 5000
maxRecords = 500
timeoutInSeconds = 30
shutdownGraceMillis = 2500
metricsLevel = NONE
workerId = w\u0031
maxLeasesForWorker = 7
frobnicate = 3
"""


def test_the_keys_that_mean_something_are_taken():
    settings = daemon_settings(parse_properties(FILE))

    assert (settings.stream, settings.application, settings.worker) == ("kclpysample", "PythonKCLSample", "w1")
    assert settings.command == ("sample_kclpy_app.py", "one", "two")
    assert (settings.start, settings.membership_ms, settings.batch_records_max) == ("trim_horizon", 5_000, 500)
    assert (settings.timeout_s, settings.grace_s, settings.leases_max) == (30.0, 2.5, 7)
    assert settings.unknown == ("frobnicate",)


def test_the_arn_goes_before_the_name_and_names_are_taken_in_any_case():
    arn = "arn:aws:kinesis:us-east-5:000000000000:stream/orders"

    assert daemon_settings({"StreamARN": arn, "streamName": "other"}).stream == "orders"


@pytest.mark.parametrize(
    ("said", "start"),
    [
        ({}, None),
        ({"initialPositionInStream": "LATEST"}, "latest"),
        ({"initialPositionInStreamExtended": "1700000000"}, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ({"initialPositionInStream": "AT_TIMESTAMP", "initialPositionInStreamExtended": "0"},
         datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_initial_positions(said, start):
    assert daemon_settings(said).start == start


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"initialPositionInStream": "SOMEWHERE"}, "TRIM_HORIZON, LATEST or AT_TIMESTAMP"),
        ({"initialPositionInStream": "AT_TIMESTAMP"}, "a time in seconds since 1970"),
        ({"initialPositionInStreamExtended": "1e400"}, "a time in seconds since 1970"),
        ({"maxRecords": "many"}, "a whole number of at least 1"),
        ({"maxRecords": "0"}, "a whole number of at least 1"),
        ({"failoverTimeMillis": "-5"}, "a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(said, text):
    with pytest.raises(InvalidConfig, match=text) as refused:
        daemon_settings(said, "app.properties")

    assert "app.properties" in str(refused.value)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


@given(pairs=st.dictionaries(
    st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), min_size=1, max_size=10),
    st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=10).map(str.strip), max_size=5,
))  # fmt: skip
def test_whatever_is_escaped_comes_back(pairs):
    text = "\n".join(f"{escaped(name)} = {escaped(value)}" for name, value in pairs.items())

    assert parse_properties(text) == pairs


@pytest.mark.fuzz
@given(text=st.text(max_size=300))
def test_any_text_is_read_to_its_end(text):
    assert all(isinstance(value, str) for value in parse_properties(text).values())
