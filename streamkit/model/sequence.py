"""Sequence numbers: the 56-digit decimal text that stands for a record outside.

47 hexadecimal digits, most significant first, written as decimal:

    2 | created seconds: 9 | ordinal's low digit: 1 | index: 16 | 00 | arrival seconds: 9 | ordinal: 8 | 2

`index` is the record's sequence in its shard plus one, so that the first record's number exceeds the
shard's own start number (index 0, arrival = creation). The index precedes the time: number order is log
order whatever the clock did. The epoch never enters it.
Source: the layout that Kinesis clients decode today.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.errors import InvalidPosition

_INDEX_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ParsedSequence:
    """sequence: -1 for the shard's start number. Times in whole seconds."""

    sequence: int
    ordinal: int
    created_s: int
    arrived_s: int


def sequence_number(sequence: int, *, ordinal: int, created_ms: int, arrived_ms: int) -> str:
    """The number of the record at `sequence`; sequence -1 gives the shard's start number."""
    index = sequence + 1
    assert 0 <= index <= _INDEX_MAX, "a sequence is a dense 63-bit position"
    return str(
        (2 << 184)
        | ((created_ms // 1000 & 0xFFFFFFFFF) << 148)
        | ((ordinal & 0xF) << 144)
        | (index << 80)
        | ((arrived_ms // 1000 & 0xFFFFFFFFF) << 36)
        | ((ordinal & 0x7FFFFFFF) << 4)
        | 2
    )


def parse_sequence_number(text: str) -> ParsedSequence:
    """Raises InvalidPosition unless `text` has the layout above."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 60 else -1
    index = number >> 80 & 0xFFFFFFFFFFFFFFFF
    if number >> 184 != 2 or number & 0xF != 2 or number >> 72 & 0xFF or index > _INDEX_MAX:
        raise InvalidPosition(
            f"{text[:80]!r} is not a sequence number", try_="copy it from a record or a receipt", position=text[:80]
        )
    ordinal = number >> 4 & 0xFFFFFFFF
    return ParsedSequence(
        sequence=index - 1,
        ordinal=ordinal,
        created_s=number >> 148 & 0xFFFFFFFFF,
        arrived_s=number >> 36 & 0xFFFFFFFFF,
    )
