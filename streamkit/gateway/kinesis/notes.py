"""What the Kinesis API keeps of a stream beside the stream itself, as notes in the metadata store.

    kinesis/<account>/<region>/streams/<name>                what was set, and a change that is under way
    kinesis/<account>/<region>/consumers/<stream>/<name>     a registered consumer
    kinesis/<account>/<region>/account                       settings of the account
    kinesis/secret                                           what iterators and page tokens are signed with

A stream that has no note was made by streamkit's own library; it has the defaults.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from streamkit.gateway.errors import corrupt_note

N = TypeVar("N", bound=msgspec.Struct)
METRICS = (
    "IncomingBytes", "IncomingRecords", "OutgoingBytes", "OutgoingRecords", "WriteProvisionedThroughputExceeded",
    "ReadProvisionedThroughputExceeded", "IteratorAgeMilliseconds",
)  # fmt: skip


class Pending(msgspec.Struct, frozen=True, omit_defaults=True):
    """A change on its way. Whoever finds it there for long carries it out again: each kind may be done twice.

    kind: "create", "delete", "split", "merge" or "scale".
    """

    kind: str
    since_ms: int
    shards: tuple[int, ...] = ()           # ordinals to split or merge; of a scale the count that is wanted
    at: str = ""                           # of a split: the hash key that the second child begins with


class StreamNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """mode: "PROVISIONED" or "ON_DEMAND". policy, key_id: "" for none. warm_mibps: 0 for none."""

    native: str
    created_ms: int = 0                    # until the stream is made; from then on the stream itself says it
    shards: int = 1
    mode: str = "PROVISIONED"
    tags: dict[str, str] = {}
    monitoring: tuple[str, ...] = ()
    encryption: str = "NONE"
    key_id: str = ""
    max_record_kib: int = 1_024
    warm_mibps: int = 0
    distribution: str = "USER_PARTITION_KEY"
    policy: str = ""
    pending: Pending | None = None


class ConsumerNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """It may be used as soon as it is there; CREATING is only what the call that makes it answers."""

    name: str
    created_ms: int
    tags: dict[str, str] = {}
    policy: str = ""


class AccountNote(msgspec.Struct, frozen=True, omit_defaults=True):
    commitment: str = "DISABLED"
    commitment_since_ms: int = 0


_encode = msgspec.json.Encoder().encode
_DECODERS: dict[type, msgspec.json.Decoder[msgspec.Struct]] = {
    kind: msgspec.json.Decoder(kind) for kind in (StreamNote, ConsumerNote, AccountNote)
}


def encode_note(note: msgspec.Struct) -> bytes:
    return _encode(note)


def decode_note(kind: type[N], key: str, value: bytes) -> N:
    """Raises CorruptFile."""
    try:
        note = _DECODERS[kind].decode(value)
    except msgspec.MsgspecError as error:
        raise corrupt_note(key, error) from error
    assert isinstance(note, kind), "the decoder is that of the kind"
    return note
