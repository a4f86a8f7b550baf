"""What became of a record, asked by its token: whichever process asks, whenever.

A token names a batch by the numbers that its producer gave it, and a record by its place in the batch:

    p1.<base64url of a msgpack array: stream, shard uuid, producer id and epoch, number, records, first sent ms>.<place>

It holds nothing secret, and nothing of the record.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import msgspec

from streamkit.errors import InvalidRequest

_MARK = "p1"

_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


@dataclass(frozen=True, slots=True)
class Fate:
    """outcome: "stored"; "not_stored", now and for good; or "forgotten": the broker does not know any more.

    shard: its name, "" when it is gone. sequence_number: "" unless stored.
    """

    outcome: Literal["stored", "not_stored", "forgotten"]
    shard: str = ""
    sequence_number: str = ""


class BatchName(NamedTuple):
    """A batch of an idempotent producer, by its numbers."""

    producer_id: _Number
    producer_epoch: _Number
    producer_sequence: _Number
    records: _Number


class _Written(NamedTuple):
    stream: str
    shard: bytes
    producer_id: _Number
    producer_epoch: _Number
    producer_sequence: _Number
    records: _Number
    sent_ms: _Number                       # wall clock, when the batch was sent first


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Written).decode


class PutToken(NamedTuple):
    """place: the record's in the batch."""

    stream: str
    shard: bytes
    batch: BatchName
    sent_ms: int
    place: int = 0

    def text(self) -> str:
        """Of the whole batch; a record's has its place behind a dot."""
        packed = _encode(_Written(self.stream, self.shard, *self.batch, self.sent_ms))
        return f"{_MARK}.{base64.urlsafe_b64encode(packed).decode('ascii').rstrip('=')}"


def parse_put_token(text: str) -> PutToken:
    """Raises InvalidRequest."""
    mark, _, rest = text.partition(".")
    packed, _, place = rest.partition(".")
    try:
        if mark != _MARK or (place and not (place.isascii() and place.isdigit() and len(place) < 6)):
            raise ValueError("its form is another")
        written = _decode(base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True))
        if len(written.shard) != 16 or int(place or 0) >= written.records:
            raise ValueError("its numbers do not fit each other")
    except (msgspec.MsgspecError, binascii.Error, ValueError) as cause:
        raise InvalidRequest(
            f"{text[:80]!r} is not the token of a record: {cause}", try_='take it from error.facts["token"]',
            field="token", value=text[:80],
        ) from cause  # fmt: skip
    return PutToken(written.stream, written.shard, BatchName(*written[2:6]), written.sent_ms, int(place or 0))
