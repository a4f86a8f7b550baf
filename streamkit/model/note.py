"""A note: a small durable document beside the streams, for faces that have more to remember than streams hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streamkit.errors import InvalidRequest

NOTE_KEY_BYTES_MAX = 1024                  # as UTF-8
NOTE_BYTES_MAX = 512 * 1024
NOTE_SWAPS_MAX = 100                       # together
NOTE_SWAP_BYTES_MAX = 1024 * 1024          # their values together: etcd takes requests of 1.5 MiB
_REVISION_MAX = (1 << 63) - 1


class Note(NamedTuple):
    """revision: of its last change; newer ones are larger, over all notes."""

    key: str
    value: bytes
    revision: int


def check_note_key(key: str) -> str:
    """The key itself. Raises InvalidRequest."""
    if not key:
        raise _invalid("key", key, "a note needs a key")
    return check_note_prefix(key, "key")


def check_note_prefix(text: str, field: str = "prefix") -> str:
    """The beginning of a key, which may be empty. Raises InvalidRequest."""
    if not text.isprintable() or len(text.encode()) > NOTE_KEY_BYTES_MAX:
        raise _invalid(field, text, f"{text[:50]!r} is not a note's {field}")
    return text


def check_note_swaps(swaps: Sequence[tuple[str, int, bytes | None]]) -> None:
    """(key, revision, value) each. Raises InvalidRequest."""
    if not 1 <= len(swaps) <= NOTE_SWAPS_MAX:
        raise _invalid("swaps", len(swaps), f"{len(swaps)} notes cannot be changed together")
    for key, revision, value in swaps:
        check_note_key(key)
        if not 0 <= revision <= _REVISION_MAX:
            raise _invalid("revision", revision, f"{revision} is not a revision")
        if value is not None and len(value) > NOTE_BYTES_MAX:
            raise _invalid("value", len(value), f"a note of {len(value)} bytes is too large")
    if len({key for key, _, _ in swaps}) < len(swaps):
        raise _invalid("key", "", "a note is named twice in one change")
    if (total := sum(len(value or b"") for _, _, value in swaps)) > NOTE_SWAP_BYTES_MAX:
        raise _invalid("value", total, f"notes of {total} bytes are too large to be changed together")


def _invalid(field: str, value: object, text: str) -> InvalidRequest:
    return InvalidRequest(
        text,
        try_=f"keys have 1 to {NOTE_KEY_BYTES_MAX} printable bytes, values {NOTE_BYTES_MAX} at most; "
        f"1 to {NOTE_SWAPS_MAX} different notes change together, {NOTE_SWAP_BYTES_MAX} bytes of them",
        field=field, value=str(value)[:50],
    )
