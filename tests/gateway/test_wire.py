"""Bodies to values and back: exact, bounded, and never a crash."""

from __future__ import annotations

import datetime
import json
import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.errors import ApiError, serialization
from streamkit.gateway.shapes import Blob, Double, List, Map, Model, String, Structure, Timestamp
from streamkit.gateway.wire import CBOR, JSON, RPC_CBOR, Cbor, Json, decode_cbor, holds_time

MODEL = Model(
    {"Do": ("At Data Inner:[Inner] Named:{Name:Inner}", "At Data Inner:[Inner] Named:{Name:Inner} Again")},
    {"Inner": "At Name", "Again": "Again Name"},
    {"At": Timestamp(), "Data": Blob(), "Name": String()},
)
SHAPE = MODEL.output("Do")
AT_MS = 1_548_118_964_772
JSON_OR_CBOR = pytest.mark.parametrize("format", [JSON, CBOR, RPC_CBOR], ids=["json", "cbor", "rpc"])


def encoded(format, value):
    return format.encode("Do", SHAPE, value, "id")


# -- replies ---------------------------------------------------------------------------------------------------------


def test_json_has_base64_and_seconds():
    inner, named = [{"At": 1000, "Name": "ü"}], {"a": {"At": 1}}
    body = encoded(JSON, {"At": AT_MS, "Data": b"\xff\xfe", "Inner": inner, "Named": named})

    assert body.decode() == (
        '{"At":1548118964.772,"Data":"//4=","Inner":[{"At":1,"Name":"ü"}],"Named":{"a":{"At":0.001}}}'
    )


@given(ms=st.integers(0, 1 << 62) | st.integers(1_000_000_000_000, 4_000_000_000_000))
def test_json_seconds_are_exact(ms):
    text = encoded(JSON, {"At": ms}).decode().removeprefix('{"At":').removesuffix("}")
    whole, _, part = text.partition(".")

    assert int(whole) * 1000 + int((part or "0").ljust(3, "0")) == ms
    assert len(part) <= 3


def test_cbor_has_bytes_and_tagged_milliseconds():
    value = cbor2.loads(
        encoded(CBOR, {"At": AT_MS, "Data": b"\xff", "Inner": [{"At": 5}]}), tag_hook=None,
        semantic_decoders={1: lambda ms, _: ("tag 1", ms)},
    )  # fmt: skip

    assert value == {"At": ("tag 1", AT_MS), "Data": b"\xff", "Inner": [{"At": ("tag 1", 5)}]}


def test_rpc_has_tagged_seconds():
    assert cbor2.loads(encoded(RPC_CBOR, {"At": AT_MS}))["At"].timestamp() == pytest.approx(AT_MS / 1000)


def test_an_operation_without_output_has_an_empty_body():
    assert encoded(JSON, None) == encoded(CBOR, None) == b""
    assert encoded(RPC_CBOR, None) == b"\xa0"
    assert encoded(JSON, {}) == b"{}"


def test_what_holds_no_time_is_not_walked():
    assert holds_time(SHAPE) and holds_time(List(Timestamp()))
    assert not holds_time(MODEL.shape("Again"))
    assert not holds_time(Map(String(), Double()))


@JSON_OR_CBOR
def test_errors_have_a_name_and_perhaps_a_message(format):
    decode = json.loads if format is JSON else cbor2.loads

    assert decode(format.encode_error(ApiError("Gone", "It is."), "id")) == {"__type": "Gone", "message": "It is."}
    assert decode(format.encode_error(ApiError("Gone"), "id")) == {"__type": "Gone"}
    assert decode(format.encode_error(serialization("No."), "id"))["Message"] == "No."
    assert decode(format.encode_error(ApiError("Gone", members={"Item": {"a": 1}}), "id"))["Item"] == {"a": 1}


# -- requests --------------------------------------------------------------------------------------------------------


@JSON_OR_CBOR
def test_broken_bodies_are_refused_by_name(format):
    broken = {
        Json: [b"", b"{", b"{}x", b'{"a":NaN}', b'{"a":"\\ud800"}', b'"\xff"', b"\xef\xbb\xbf{}", b"'a'",
               b"1e999", b"1" * 9999],
        Cbor: [b"", b"\xa1", b"\xa0\xa0", b"\xff", b"\x1c", b"\x61\xff", b"\xbf\x61a\xff", b"\x5b" + b"\xff" * 8,
               b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff", b"\x7f\x41a\xff", b"\xa1\x01\x01", b"\xa1\x81\x01\x01"],
    }  # fmt: skip
    for body in broken[type(format)]:
        with pytest.raises(ApiError) as caught:
            format.decode(body, SHAPE)
        assert (caught.value.name, caught.value.message) == ("SerializationException", None), body


@pytest.mark.parametrize(
    ("format", "body"),
    [
        (JSON, b"[" * 500_000), (JSON, b'{"a":' * 300_000), (CBOR, b"\x81" * 500_000), (CBOR, b"\x9f" * 500_000),
        (CBOR, b"\xbf\x61a" * 300_000), (CBOR, b"\xa1\x61a" * 300_000), (CBOR, b"\xc1" * 500_000),
        (CBOR, b"\x5f" * 99_999), (CBOR, b"\x81" * 200 + b"\x01"),
    ],
)  # fmt: skip
def test_deep_nesting_is_refused(format, body):
    with pytest.raises(ApiError):
        format.decode(body, SHAPE)


def test_cbor_of_every_width_and_kind_of_length_is_read():
    whole = bytes.fromhex("bf6141" "9f01180219000317040000" "ff".replace("17040000", "1a00000004")) + b"\xff"

    assert decode_cbor(whole) == {"A": [1, 2, 3, 4]}
    assert decode_cbor(b"\xa1\x7f\x61A\x61B\xff\x5f\x41a\x41b\xff") == {"AB": b"ab"}
    assert decode_cbor(b"\xb9\x00\x01\x78\x01A\x1b" + struct.pack(">Q", 5)) == {"A": 5}
    assert decode_cbor(b"\xa2\x61A\xf6\x61B\xfb" + struct.pack(">d", 1.5)) == {"A": None, "B": 1.5}
    assert decode_cbor(b"\xa1\x61A\x3b" + b"\xff" * 8) == {"A": -(1 << 64)}


def test_tag_1_is_left_to_the_shape_and_no_other_tag_is_known():
    assert decode_cbor(b"\xa1\x61A\xc1\x1b" + struct.pack(">Q", AT_MS)) == {"A": AT_MS}
    contents = [b"\x00", b"\x41\x01", b"\x63(a)", b"\x82\x01\x02", b"\xa0"]
    heads = [bytes([0xC0 + tag]) for tag in range(24)] + [b"\xd8" + bytes([tag]) for tag in range(24, 256)]
    heads += [b"\xd9" + struct.pack(">H", tag) for tag in range(256, 65_536, 1)]
    for head in heads:
        if head == b"\xc1":
            continue
        for content in contents if len(head) < 3 else contents[:1]:
            with pytest.raises(ApiError):
                decode_cbor(b"\x81" + head + content)


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary()
    | st.floats(allow_nan=False), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
))  # fmt: skip
def test_cbor_is_read_as_it_was_written(value):
    assert decode_cbor(cbor2.dumps(value)) == value
    assert decode_cbor(cbor2.dumps(value, indefinite_containers=True)) == value


HEADS = b"\x81\x9f\xff\xa1\xbf\x61a\x00\x1b\xc1\xd8\x1c\x1d\x19\xfb\xf6\xf7\xf8\x5f\x7f\x41{}[]\",:1e-\\u0"


@pytest.mark.fuzz
@given(body=st.binary(max_size=60) | st.builds(bytes, st.lists(st.sampled_from(HEADS), max_size=60)))
def test_any_bytes_decode_or_are_refused(body):
    for format in (JSON, CBOR, RPC_CBOR):
        try:
            plain(format.decode(body, SHAPE))
        except ApiError as error:
            assert error.name == "SerializationException"


def plain(value):
    assert type(value) in (dict, list, str, bytes, int, float, bool, type(None)) or repr(value) == "undefined" or (
        type(value) is cbor2.CBORSimpleValue
    ), value  # fmt: skip
    assert not isinstance(value, datetime.datetime)
    for item in value.values() if type(value) is dict else value if type(value) is list else ():
        plain(item)


def test_structure_equality_is_identity():
    assert Structure("A") != Structure("A")
