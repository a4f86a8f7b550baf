"""How numbers, times and tables look, and how people may type them."""

import pytest

from streamkit.cli import rendering, times
from streamkit.cli.decoding import one_line, shown
from streamkit.errors import InvalidPosition, InvalidUse
from streamkit.model.position import LATEST, TRIM_HORIZON, AtSequence, AtTime
from streamkit.model.sequence import sequence_number


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(400, "0.4 s"), (9_900, "9.9 s"), (42_000, "42 s"), (842_000, "14 m 02 s"), (24_000_000, "6 h 40 m"),
     (273_600_000, "3 d 4 h")],
)  # fmt: skip
def test_durations(milliseconds, text):
    assert rendering.duration(milliseconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1023 B"), (32_925_286, "31.4 MiB"), (387_620_798_464, "361 GiB")]
)
def test_sizes(number, text):
    assert rendering.size(number) == text


def test_counts_are_grouped():
    assert rendering.count(1204993211) == "1 204 993 211"


def test_a_table_is_aligned_and_has_no_trailing_blanks(capsys):
    rendering.table(("STREAM", "SHARDS"), [("orders", "4"), ("a", "16")], right=("SHARDS",))

    assert capsys.readouterr().out.splitlines() == ["STREAM  SHARDS", "orders       4", "a           16"]


def test_json_has_its_schema_first(capfd):
    rendering.emit("stream", {"name": "orders"})

    assert capfd.readouterr().out == '{"schema":"streamkit.stream.v1","name":"orders"}\n'


def test_control_characters_are_escaped():
    assert rendering.printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"


@pytest.mark.parametrize(("text", "ms"), [("250ms", 250), ("30s", 30_000), ("1.5h", 5_400_000), ("7d", 604_800_000)])
def test_typed_durations(text, ms):
    assert times.parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "5", "five minutes", "-3s", "1y"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidUse):
        times.parse_duration_ms(text)


def test_typed_positions():
    number = sequence_number(41, ordinal=3, created_ms=1_700_000_000_000, arrived_ms=1_700_000_001_000)

    assert times.parse_start("trim_horizon") == (None, TRIM_HORIZON)
    assert times.parse_start("latest") == (None, LATEST)
    assert times.parse_start("2026-11-23T10:00Z") == (None, AtTime(1_795_428_000_000))
    assert times.parse_start("shardId-000000000003:17") == ("shardId-000000000003", AtSequence(17))
    assert times.parse_start(f"shardId-000000000003:{number}") == ("shardId-000000000003", AtSequence(41))
    with pytest.raises(InvalidPosition):
        times.parse_start("yesterday")


@pytest.mark.parametrize(
    ("data", "decode", "content_type", "codec", "expected"),
    [
        (b'{"a": 1}', "auto", "", "auto", ("json", {"a": 1})),
        (b"\x81\xa1a\x01", "auto", "", "auto", ("msgpack", {"a": 1})),
        ("grüezi".encode(), "auto", "", "auto", ("text", "grüezi")),
        (b"\xff\xfe", "auto", "", "auto", ("hex", "fffe")),
        (b"17", "auto", "text", "auto", ("text", "17")),
        (b"17", "auto", "", "text", ("text", "17")),
        (b"17", "hex", "", "auto", ("hex", "3137")),
        (b"nonsense", "json", "", "auto", ("hex", b"nonsense".hex())),
    ],
)
def test_payloads_are_shown_as_what_they_are(data, decode, content_type, codec, expected):
    assert shown(data, decode, content_type, codec) == expected


def test_values_take_one_line():
    assert one_line({"a": [1, 2]}) == '{"a":[1,2]}'
    assert one_line("text") == "text"
