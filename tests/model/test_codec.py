"""Codecs, and the table of what a handler may ask for."""

from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import InvalidUse
from streamkit.model.codec import AUTO, BYTES, JSON, MSGPACK, TEXT, Decoding, Protobuf, explain, find_codec

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8,
)


class Order(msgspec.Struct):
    id: int
    total: float = 0.0


@dataclass
class Plain:
    id: int


class Typed(TypedDict):
    id: int


class Model:
    """What pydantic's BaseModel offers."""

    def __init__(self, id: int) -> None:
        self.id = id

    @classmethod
    def model_validate_json(cls, data: bytes) -> "Model":
        return cls.model_validate(msgspec.json.decode(data))

    @classmethod
    def model_validate(cls, value: Any) -> "Model":
        if not isinstance(value.get("id"), int):
            raise ModelError
        return cls(value["id"])


class ModelError(ValueError):
    def errors(self) -> list[dict[str, Any]]:
        return [{"loc": ("id",), "msg": "Input should be a valid integer"}]


@given(json_values)
def test_json_and_msgpack_give_back_what_they_took(value):
    assert JSON.decode(JSON.encode(value)) == value == MSGPACK.decode(MSGPACK.encode(value))
    assert AUTO.decode(AUTO.encode(value)) == value


@given(st.binary())
def test_bytes_pass_unchanged(data):
    assert BYTES.decode(BYTES.encode(data)) == data == AUTO.encode(memoryview(data))


@pytest.mark.parametrize("annotation", [Order, Plain, Typed, Model, dict, dict[str, int]])
@pytest.mark.parametrize("codec", ["auto", "json", "msgpack"])
def test_a_payload_becomes_what_the_annotation_says(annotation, codec):
    decoded = Decoding(codec, annotation).decode(find_codec("json" if codec == "auto" else codec).encode({"id": 7}))

    assert (decoded["id"] if isinstance(decoded, dict) else decoded.id) == 7


@pytest.mark.parametrize(("annotation", "reason"), [
    (Order, "id: expected int, got str"), (Plain, "id: expected int, got str"), (Typed, "id: expected int, got str"),
    (Model, "id: input should be a valid integer"), (list, "expected array, got object"),
    (dict[str, int], "[...]: expected int, got str"),
])
def test_a_payload_that_does_not_fit_names_the_field(annotation, reason):
    with pytest.raises((ValueError, TypeError)) as unfit:
        Decoding("auto", annotation).decode(b'{"id": "x"}')
    assert explain(unfit.value) == reason


def test_auto_goes_by_the_content_type():
    decoding = Decoding("auto")

    assert decoding.decode_for is not None
    assert decoding.decode_for("text/plain; charset=utf-8")(b"[1]") == "[1]"
    assert decoding.decode_for("bytes")(b"[1]") == b"[1]"
    assert decoding.decode_for("msgpack")(b"\x93\x01\x02\x03") == [1, 2, 3]
    assert decoding.decode_for("application/json")(b"[1]") == [1]
    assert decoding.decode_for("unheard/of")(b"[1]") == [1]
    assert decoding.decode(b"not json") == b"not json"


def test_a_chosen_codec_is_used_whatever_the_header_says():
    assert Decoding("text").decode_for is None
    assert Decoding("auto", bytes).decode(b"{}") == b"{}"


@pytest.mark.parametrize(("codec", "annotation", "data", "value"), [
    ("text", str, b"17", "17"), ("text", int, b"17", 17), ("bytes", bytes, b"17", b"17"), ("auto", int, b"17", 17),
    ("auto", Any, b"17", 17),
])
def test_scalars(codec, annotation, data, value):
    assert Decoding(codec, annotation).decode(data) == value


class Reversed:
    name = "reversed"

    def encode(self, value: str) -> bytes:
        return value[::-1].encode()

    def decode(self, data: bytes) -> str:
        return data.decode()[::-1]


def test_a_codec_of_ones_own_is_taken_and_its_values_checked():
    assert Decoding(Reversed(), str).decode(b"cba") == "abc"
    with pytest.raises(msgspec.ValidationError):
        Decoding(Reversed(), dict).decode(b"cba")


@pytest.mark.parametrize("codec", ["jsn", object()])
def test_an_unknown_codec_is_refused_with_the_known_ones(codec):
    with pytest.raises(InvalidUse, match=r'known: "auto", "bytes", "json", "msgpack", "text"'):
        find_codec(codec)


@pytest.mark.parametrize(("codec", "value"), [(BYTES, "text"), (TEXT, b"bytes")])
def test_a_value_of_the_wrong_kind_is_refused(codec, value):
    with pytest.raises(InvalidUse):
        codec.encode(value)


@given(st.binary(max_size=50), st.sampled_from([Order, Plain, Typed, dict, int, str]),
       st.sampled_from(["auto", "json", "msgpack", "text"]))
def test_garbage_is_unfit_or_a_value_and_nothing_else(data, annotation, codec):
    try:
        Decoding(codec, annotation).decode(data)
    except (ValueError, TypeError) as unfit:
        assert explain(unfit)


def test_messages_of_protoc_are_values_like_others():
    codec = Protobuf(StringValue)
    data = codec.encode(StringValue(value="a"))

    assert Decoding(codec).decode(data) == Decoding(codec, StringValue).decode(data) == StringValue(value="a")
    assert Decoding(codec, bytes).decode(data) == data
    with pytest.raises(InvalidUse, match="takes StringValue, not dict"):
        codec.encode({"value": "a"})
    with pytest.raises(InvalidUse, match="int is not a class of messages"):
        Protobuf(int)
    with pytest.raises(InvalidUse, match="is not a type that payloads decode into"):
        Decoding("json", StringValue)
    with pytest.raises(Exception) as caught:
        codec.decode(b"\xff\xff")
    assert explain(caught.value)
