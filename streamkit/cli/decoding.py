"""How `tail` shows a payload: what the header, the stream or the bytes themselves say it is.

`auto` tries, in order: the header `content-type`, the stream's codec, JSON, MessagePack (only when it takes all
bytes and gives a map or a list), UTF-8 text, hexadecimal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

CHOICES = ("auto", "json", "msgpack", "text", "hex")


def shown(data: bytes, decode: str, content_type: str = "", stream_codec: str = "auto") -> tuple[str, Any]:
    """(how it was read, the value). Never fails: what is not as told is shown as hexadecimal."""
    hints = [decode] if decode != "auto" else [content_type, stream_codec, "json", "msgpack", "text"]
    for name in hints:
        if name not in _READERS:
            continue
        try:
            value = _READERS[name](data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if decode == "auto" and name == "msgpack" and not isinstance(value, (dict, list)):
            continue
        return name, value
    return "hex", data.hex()


def one_line(value: Any) -> str:
    """The value as text without line breaks; JSON for everything that is not text."""
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=repr).decode()


def _json(data: bytes) -> Any:
    # The text is checked and kept: numbers and the order of keys are shown as they were put.
    return msgspec.json.decode(data)


def _text(data: bytes) -> str:
    return data.decode("utf-8")


_READERS: dict[str, Callable[[bytes], Any]] = {
    "json": _json,
    "application/json": _json,
    "msgpack": msgspec.msgpack.decode,
    "text": _text,
    "text/plain": _text,
    "hex": bytes.hex,
}
