"""Shard iterators and page tokens: opaque text that any node can read, signed and dated.

    base64( msgpack array, SHA-256 HMAC cut to 16 bytes )       one key for all nodes, kept as a note

They hold no server to what it said: a token says where to go on, not what is there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TypeVar

import msgspec

from streamkit.client.client import AsyncClient
from streamkit.gateway.errors import ApiError, invalid_argument
from streamkit.gateway.kinesis.names import Place
from streamkit.runtime.interfaces import Clock

T = TypeVar("T")
VALID_MS = 300_000
_AHEAD_MS = 60_000                         # another node's clock may be ahead of ours by so much
_SECRET_KEY = "kinesis/secret"
_MAC_BYTES = 16


class Iterator(msgspec.Struct, array_like=True, frozen=True, tag="i1"):
    """A place to read on from. shard: its uuid, so that a stream made anew does not take it."""

    issued_ms: int
    account: str
    region: str
    stream: str
    ordinal: int
    shard: bytes
    sequence: int                          # first to be read

    @property
    def place(self) -> Place:
        return Place(self.account, self.region, self.stream)


class Page(msgspec.Struct, array_like=True, frozen=True, tag="p1"):
    """The rest of a listing. after: the last key of the page before. more: what the first request asked for."""

    issued_ms: int
    listing: str                           # operation
    account: str
    region: str
    stream: str
    after: str
    more: tuple[str | int, ...] = ()

    @property
    def place(self) -> Place:
        return Place(self.account, self.region, self.stream)


_encoder = msgspec.msgpack.Encoder()
_iterators = msgspec.msgpack.Decoder(Iterator)
_pages = msgspec.msgpack.Decoder(Page)


class Tokens:
    """Made and read with the secret that all nodes share."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._mac = hmac.new(secret, digestmod=hashlib.sha256)
        self._clock = clock

    @classmethod
    async def open(cls, client: AsyncClient, clock: Clock) -> Tokens:
        """The first node ever draws the secret."""
        while True:
            value, revision = await client.read_note(_SECRET_KEY)
            if value is not None:
                return cls(value, clock)
            random = client.runtime.random
            await client.swap_notes([(_SECRET_KEY, revision, random.uuid() + random.uuid())])

    def iterator(self, place: Place, ordinal: int, shard: bytes, sequence: int) -> str:
        return self._sign(
            Iterator(self._clock.now_ms(), place.account, place.region, place.name, ordinal, shard, sequence)
        )

    def read_iterator(self, text: str) -> Iterator:
        """Raises ApiError (InvalidArgumentException, ExpiredIteratorException)."""
        found = self._read(text, _iterators)
        if found is None:
            raise invalid_argument("Invalid ShardIterator.")
        age_ms = self._clock.now_ms() - found.issued_ms
        if not -_AHEAD_MS <= age_ms <= VALID_MS:
            raise ApiError(
                "ExpiredIteratorException",
                f"Iterator expired. The iterator was created {age_ms // 1000} s ago, which is more than the "
                f"tolerated delay of {VALID_MS} milliseconds.",
            )
        return found

    def page(self, listing: str, place: Place, after: str, *more: str | int) -> str:
        return self._sign(
            Page(self._clock.now_ms(), listing, place.account, place.region, place.name, after, more)
        )

    def read_page(self, text: str, listing: str) -> Page:
        """Raises ApiError (InvalidArgumentException, ExpiredNextTokenException)."""
        found = self._read(text, _pages)
        if found is None or found.listing != listing:
            raise invalid_argument("NextToken is invalid.")
        if not -_AHEAD_MS <= self._clock.now_ms() - found.issued_ms <= VALID_MS:
            raise ApiError("ExpiredNextTokenException", f"NextToken is older than {VALID_MS // 1000} seconds.")
        return found

    def _sign(self, token: msgspec.Struct) -> str:
        data = _encoder.encode(token)
        return base64.b64encode(data + self._mac_of(data)).decode()

    def _read(self, text: str, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None
        if base64.b64encode(raw).decode() != text:     # the bits that padding leaves over are not signed
            return None
        data, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(self._mac_of(data), mac):
            return None
        try:
            return decoder.decode(data)
        except msgspec.MsgspecError:
            return None

    def _mac_of(self, data: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(data)
        return mac.digest()[:_MAC_BYTES]
