"""The errors of records that the accumulator does not take; apart from it, because they are made seldom."""

from __future__ import annotations

from streamkit.errors import Closed, InvalidRequest, RecordTooLarge, WrongShard

KEY_BYTES_MAX = 1024
HEADERS_BYTES_MAX = 65535


def refused(
    key_bytes: int, headers_bytes: int, size: int, record_bytes_max: int, keyless: bool = False
) -> InvalidRequest:
    """What is wrong with a record of these sizes."""
    if not (0 < key_bytes <= KEY_BYTES_MAX or keyless):
        return InvalidRequest(f"a key has 1..{KEY_BYTES_MAX} bytes, got {key_bytes}", try_="choose another key",
                              field="key", size_bytes=key_bytes)  # fmt: skip
    if headers_bytes > HEADERS_BYTES_MAX:
        return InvalidRequest(f"headers have at most {HEADERS_BYTES_MAX} bytes, got {headers_bytes}",
                              try_="move them into the value", field="headers", size_bytes=headers_bytes)  # fmt: skip
    return RecordTooLarge(f"the record has {size} bytes, the stream takes {record_bytes_max}",
                          try_="store the payload elsewhere and put its address, or raise record_bytes_max",
                          size_bytes=size, limit_bytes=record_bytes_max)  # fmt: skip


def closed() -> Closed:
    """The error for a record that comes after close()."""
    return Closed("the producer is closed", try_="make another one", what="producer")


def not_text() -> InvalidRequest:
    """The error for a key that is not well-formed text."""
    return InvalidRequest("a key is text in UTF-8", try_="put binary keys as text, such as key.hex()", field="key")


def no_text(key: object) -> InvalidRequest:
    """The error for a key of another type."""
    return InvalidRequest(f"a key is text, got {type(key).__name__}", try_="put(value, key=str(key))", field="key")


def no_shard() -> WrongShard:
    """The error for a hash key that no shard takes."""
    return WrongShard("no open shard takes this hash key", try_="try again; the shard map is changing")
