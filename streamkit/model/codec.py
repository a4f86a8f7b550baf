"""Codecs: values to payloads and back, and payloads checked against the type a handler asks for.

A codec is any object with `name`, `encode` and `decode`; its name travels in the header `content-type`. "auto" goes
by that header; without one a payload is JSON when it reads as JSON, else the bytes as they are. `Decoding` joins a
codec with an annotation: a built-in type, msgspec.Struct, dataclass, TypedDict, or a class with
`model_validate_json`. Its functions go into `_core.batch.RecordContext`; what they raise becomes DecodeFailed there,
with the text that `explain` finds for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import msgspec

from streamkit._core.batch import RecordContext
from streamkit.errors import InvalidUse
from streamkit.model.shard import Shard

Decode: TypeAlias = Callable[[bytes], Any]
CONTENT_TYPE = "content-type"              # the header that names a record's codec


@runtime_checkable
class Codec(Protocol):
    """name: what `content-type` says; decode(encode(value)) gives the value back."""

    name: str

    def encode(self, value: Any) -> bytes: ...
    def decode(self, data: bytes) -> Any: ...


class Json:
    """JSON: dictionaries, lists, text, numbers, dataclasses, msgspec.Structs, dates."""

    name = "json"

    def __init__(self) -> None:
        self.encode = msgspec.json.Encoder().encode
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode


class MessagePack:
    """MessagePack of the same values, and bytes inside them."""

    name = "msgpack"

    def __init__(self) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


class Bytes:
    """The payload as it is."""

    name = "bytes"

    def encode(self, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        raise InvalidUse(
            f'codec "bytes" takes bytes, not {type(value).__name__}', try_='use codec="json"', codec=self.name
        )

    def decode(self, data: bytes) -> bytes:
        return data


class Text:
    """UTF-8."""

    name = "text"

    def encode(self, value: Any) -> bytes:
        if isinstance(value, str):
            return value.encode()
        raise InvalidUse(
            f'codec "text" takes str, not {type(value).__name__}', try_='use codec="json"', codec=self.name
        )

    def decode(self, data: bytes) -> str:
        return str(data, "utf-8")


class Protobuf:
    """Messages of one class that protoc generated; nothing but that class is needed.

    Handlers may name the class: `def bill(order: Order)` with `codec=Protobuf(Order)`. Raises InvalidUse for another
    class, and for values of another class.
    """

    name = "protobuf"

    def __init__(self, message: type[Any]) -> None:
        if not (hasattr(message, "FromString") and hasattr(message, "SerializeToString")):
            shown = getattr(message, "__name__", repr(message))
            raise InvalidUse(
                f"{shown} is not a class of messages", try_="give the class that protoc generated, as Protobuf(Order)",
                codec=self.name,
            )
        self.message = message
        self.decode: Callable[[bytes], Any] = message.FromString

    def encode(self, value: Any) -> bytes:
        if isinstance(value, self.message):
            return bytes(value.SerializeToString())
        raise InvalidUse(
            f'codec "protobuf" takes {self.message.__name__}, not {type(value).__name__}',
            try_=f"put a {self.message.__name__}, or use another codec", codec=self.name,
        )


class Auto:
    """Bytes as they are, everything else as JSON; read as JSON where it is JSON."""

    name = "auto"

    def encode(self, value: Any) -> bytes:
        return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else JSON.encode(value)

    def decode(self, data: bytes) -> Any:
        try:
            return JSON.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return data


JSON = Json()
MSGPACK = MessagePack()
BYTES = Bytes()
TEXT = Text()
AUTO = Auto()
_NAMED: dict[str, Codec] = {codec.name: codec for codec in (JSON, MSGPACK, BYTES, TEXT, AUTO)}
_CONTENT_TYPES = {
    "application/json": "json",
    "text/plain": "text",
    "application/octet-stream": "bytes",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
}


def find_codec(codec: Codec | str) -> Codec:
    """The codec of that name, or the object itself. Raises InvalidUse."""
    found = _NAMED.get(codec) if isinstance(codec, str) else codec
    if isinstance(found, Codec):
        return found
    known = ", ".join(f'"{name}"' for name in sorted(_NAMED))
    raise InvalidUse(
        f"{codec!r} is not a codec; known: {known}",
        try_="use one of them, or an object with name, encode and decode", codec=str(codec),
    )


_AT = re.compile(r"(?P<what>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)


def explain(error: BaseException) -> str:
    """Why a payload could not be decoded, in one line: the field's path, then what is wrong with it; never the payload.

    error: what a function of `Decoding` raised. It is asked here and not around each call, which would cost as much
    again as making the record.
    """
    if isinstance(error, msgspec.MsgspecError):
        text = str(error).replace("`", "")
        if found := _AT.match(str(error)):
            path = found["path"].removeprefix("$").removeprefix(".")
            text = (f"{path}: " if path else "") + _lower(found["what"].replace("`", ""))
        return _lower(text) if ": " not in text else text
    errors = getattr(error, "errors", None)
    if callable(errors):                   # pydantic's ValidationError, without importing pydantic
        first = errors()[0]
        path = ".".join(str(part) for part in first.get("loc", ()))
        return (f"{path}: " if path else "") + _lower(str(first.get("msg", "does not fit")))
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return str(error) or type(error).__name__


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


class Decoding:
    """How payloads become values of one annotation.

    codec: what a record without a usable content type is read as. annotation: None or Any for whatever the codec
    gives. decode: for such records. decode_for: content type → decode, for the others; a codec that was chosen by
    name or given as an object is used whatever the header says. Raises InvalidUse for a type that nothing decodes.
    """

    def __init__(self, codec: Codec | str = "auto", annotation: Any = None) -> None:
        self.codec = find_codec(codec)
        self.annotation = None if annotation in (Any, object) else annotation
        self._by_type: dict[str, Decode] = {}
        self.decode = self._decoder(self.codec)
        self.decode_for = self._decode_for if self.codec is AUTO and self.annotation is not bytes else None

    def context(self, stream: str, shard: Shard) -> RecordContext:
        """For the batches of that shard."""
        return self.instead(RecordContext(stream, shard.id, shard.ordinal, shard.created_ms, uuid=shard.uuid))

    def instead(self, context: RecordContext) -> RecordContext:
        """The same records, decoded this way."""
        return RecordContext(
            context.stream, context.shard, context.ordinal, context.created_ms, self.decode,
            decode_for=self.decode_for, explain=explain, codec=self.codec.name, uuid=context.uuid,
        )

    def _decode_for(self, content_type: str) -> Decode:
        known = self._by_type.get(content_type)
        if known is None:
            plain = content_type.partition(";")[0].strip().lower()
            codec = _NAMED.get(_CONTENT_TYPES.get(plain, plain), self.codec)
            known = self._decoder(codec)
            if len(self._by_type) < 1_000:     # content types come from outside; their number is bounded here
                self._by_type[content_type] = known
        return known

    def _decoder(self, codec: Codec) -> Decode:
        annotation = self.annotation
        if annotation is None or (isinstance(codec, Protobuf) and annotation is codec.message):
            return codec.decode
        if annotation is bytes:
            return BYTES.decode
        if (validate_json := getattr(annotation, "model_validate_json", None)) is not None:
            if codec is JSON or codec is AUTO:
                return cast(Decode, validate_json)
            validate = annotation.model_validate
            return lambda data: validate(codec.decode(data))
        try:
            _refuse_unknown(msgspec.inspect.type_info(annotation), set())      # before the first record comes
            if codec is JSON or codec is AUTO:
                return msgspec.json.Decoder(annotation).decode
            if codec is MSGPACK:
                return msgspec.msgpack.Decoder(annotation).decode
            msgspec.json.Decoder(annotation)
        except (TypeError, NameError) as cause:
            shown = getattr(annotation, "__name__", str(annotation))
            raise InvalidUse(
                f"{shown} is not a type that payloads decode into: {cause}",
                try_="use dict, a msgspec.Struct, a dataclass, a TypedDict, Record or Batch", annotation=shown,
            ) from cause
        if codec is TEXT and annotation is str:
            return TEXT.decode
        return lambda data: _converted(codec.decode(data), annotation)


def _refuse_unknown(info: Any, seen: set[int]) -> None:
    # msgspec takes any class and fails at the first value; here it fails at once.
    if isinstance(info, msgspec.inspect.CustomType):
        raise TypeError(f"nothing says how {info.cls.__name__} is read")
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, tuple | list):
        for inner in info:
            _refuse_unknown(inner, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in info.__struct_fields__:
            _refuse_unknown(getattr(info, name), seen)


def _converted(value: Any, annotation: Any) -> Any:
    if isinstance(annotation, type) and isinstance(value, annotation):
        return value
    return msgspec.convert(value, annotation, strict=not isinstance(value, str))
