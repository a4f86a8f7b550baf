"""Names of the Kinesis API: accounts, regions, ARNs, and the streams of streamkit behind them.

Streams of two accounts or regions are different streams. Those of the default account and region carry their own
name, so that programs of streamkit's own library see them as they are; all others lie under `kinesis.…`, which the
default name space does not show.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from streamkit.gateway.errors import invalid_argument
from streamkit.model import limits

_ELSEWHERE = "kinesis."                    # prefix of the streams of other accounts and regions
_STREAM_ARN = re.compile(r"arn:(aws[^:]*):kinesis:([^:]*):(\d{12}):stream/([a-zA-Z0-9_.-]{1,128})")
_CONSUMER_ARN = re.compile(
    r"arn:(aws[^:]*):kinesis:([^:]*):(\d{12}):stream/([a-zA-Z0-9_.-]{1,128})/consumer/([a-zA-Z0-9_.-]{1,128}):(\d+)"
)
_SHARD_ID = re.compile(r"(?:.*-)?(\d{1,40})")
_ORDINAL_MAX = 2_147_483_647


@dataclass(frozen=True, slots=True)
class Place:
    """A stream's name with the account and region that it is a name in."""

    account: str
    region: str
    name: str

    @property
    def arn(self) -> str:
        return f"arn:aws:kinesis:{self.region}:{self.account}:stream/{self.name}"

    @property
    def space(self) -> str:
        """Prefix of all notes of the account and region."""
        return f"kinesis/{self.account}/{self.region}/"

    @property
    def key(self) -> str:
        return f"{self.space}streams/{self.name}"

    @property
    def consumers(self) -> str:
        """Prefix of the notes of the stream's registered consumers."""
        return f"{self.space}consumers/{self.name}/"

    def consumer_arn(self, name: str, created_s: int) -> str:
        return f"{self.arn}/consumer/{name}:{created_s}"


@dataclass(frozen=True, slots=True)
class ConsumerName:
    """A registered consumer. created_s: None when it was named by the stream's ARN and its name."""

    place: Place
    name: str
    created_s: int | None = None


def parse_stream_arn(arn: str) -> Place:
    """Raises ApiError (InvalidArgumentException)."""
    if (found := _STREAM_ARN.fullmatch(arn)) is None:
        raise invalid_argument(f"{arn[:200]} is not the ARN of a stream")
    _, region, account, name = found.groups()
    return Place(account, region, name)


def parse_consumer_arn(arn: str) -> ConsumerName:
    """Raises ApiError (InvalidArgumentException)."""
    if (found := _CONSUMER_ARN.fullmatch(arn)) is None:
        raise invalid_argument(f"{arn[:200]} is not the ARN of a stream's consumer")
    _, region, account, stream, name, created = found.groups()
    return ConsumerName(Place(account, region, stream), name, int(created[:12]))


def native_name(place: Place, *, account: str, region: str) -> str:
    """What the stream is called behind this API. account, region: the default ones."""
    if (place.account, place.region) == (account, region) and not place.name.startswith(("__", _ELSEWHERE)):
        return place.name
    plain = f"{_ELSEWHERE}{place.region}.{place.account}.{place.name}"
    if len(plain) <= limits.STREAM_NAME_CHARACTERS_MAX and re.fullmatch(r"[a-zA-Z0-9_.-]+", plain):
        return plain
    return _ELSEWHERE + hashlib.sha256(place.arn.encode()).hexdigest()


def is_plain(native: str) -> bool:
    """Whether a native stream belongs to the default account and region."""
    return not native.startswith((_ELSEWHERE, "__"))


def parse_shard_id(text: str) -> int | None:
    """The shard's ordinal; None when no shard can have that id. Loose forms, such as "3" or "shard-3", are taken."""
    found = _SHARD_ID.fullmatch(text)
    ordinal = int(found[1]) if found else _ORDINAL_MAX + 1
    return ordinal if ordinal <= _ORDINAL_MAX else None
