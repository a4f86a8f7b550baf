from collections.abc import Sequence
from typing import Any

from streamkit._core.framing import PutReceipt
from streamkit._core.hashing import ShardTable

class MalformedBody(ValueError):
    """The body is no JSON or CBOR of the operation's form; its text says what is wrong, without payload."""

class Packed:
    """One sealed batch and the entries in it. Made by PutEntries.pack; payload_bytes: their data and keys."""

    shard: int
    batch: bytes
    count: int
    payload_bytes: int
    def __len__(self) -> int: ...

class PutEntries:
    """A PutRecord (single) or PutRecords body taken apart where it lies.

    members: every other top-level member, decoded; null ones are absent. payload_bytes: data and keys (UTF-8).
    At most 500 entries are kept; of more only `count` tells. Raises MalformedBody.
    """

    members: dict[str, Any]
    payload_bytes: int
    def __init__(self, body: bytes, *, cbor: bool, single: bool) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def has_records(self) -> bool: ...
    def violations(self, *, key_optional: bool = False) -> list[tuple[str, str, str]]:
        """What breaks the model in the entries, at most ten: (path, shown value, constraint).

        The value is shown as messages show it: quoted and cut when long, or null. How many entries there are is not
        looked at.
        """

    def bad_hash_key(self) -> str | None:
        """The first ExplicitHashKey that is a number of 2**128 or more."""

    def largest(self) -> int:
        """Bytes of the largest entry, data and key; 0 when there is none."""
    def pack(
        self,
        table: ShardTable,
        *,
        codec: int,
        map_version: int,
        again: Sequence[Packed] | None = None,
        automatic: bool = False,
    ) -> list[Packed]:
        """Sealed batches, one or more a shard; the entries of one shard keep their order.

        again: Packed of an earlier call whose entries alone are packed, for a map that has changed. automatic: hash
        keys are spread whatever the keys are. Raises WrongShard, InvalidUse.
        """

    def reply(
        self,
        packed: list[Packed],
        outcomes: Sequence[PutReceipt | tuple[str, str]],
        origins: Sequence[tuple[int, int]],
        *,
        encryption: str | None = None,
    ) -> bytes:
        """The reply's body in the request's format. origins: by shard index, (ordinal, created_ms).

        packed: all the batches that hold the entries, in any order, each entry in exactly one. outcomes: beside them.
        Raises InvalidUse when an entry has no outcome, or when a single one has failed.
        """
