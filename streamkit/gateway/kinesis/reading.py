"""Where a reader of the Kinesis API starts in a shard, and what it is told when it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamkit.errors import InvalidPosition, SequenceTrimmed, ShardNotFound, StreamkitError, TimedOut, Unavailable
from streamkit.gateway.errors import ApiError, invalid_argument, unavailable
from streamkit.gateway.kinesis.directory import Directory, Found, no_such_stream
from streamkit.model.position import LATEST, TRIM_HORIZON, AtSequence, AtTime, Position
from streamkit.model.sequence import parse_sequence_number
from streamkit.model.shard import Shard
from streamkit.protocol.frames import Fetched
from streamkit.runtime.backoff import Backoff

T = TypeVar("T")
_SKEW_MS = 1_000
_PATIENCE_MS = 5_000           # a leader that moves is waited for so long


async def start_of(
    directory: Directory, found: Found, shard: Shard, kind: str, number: str | None, time_ms: int | None
) -> int:
    """The first sequence to read. number: with AT_ and AFTER_SEQUENCE_NUMBER, and only then. Raises ApiError."""
    if kind in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
        if number is None:
            raise _argument(found, shard, f"{kind} needs a sequence number to start from.")
        sequence = _sequence(found, shard, number) + (kind == "AFTER_SEQUENCE_NUMBER")
        if shard.end is not None:
            return min(max(sequence, 0), shard.end)
        return await _resolved(directory, found, shard, AtSequence(max(sequence, 0)))
    if number is not None:
        raise _argument(found, shard, f"a sequence number to start from does not go with {kind}.")
    match kind:
        case "TRIM_HORIZON":
            return await _resolved(directory, found, shard, TRIM_HORIZON)
        case "LATEST":
            return await _resolved(directory, found, shard, LATEST)
    if time_ms is None:
        raise _argument(found, shard, "AT_TIMESTAMP needs a Timestamp.")
    if time_ms > directory.clock.now_ms() + _SKEW_MS:
        raise _argument(found, shard, "the Timestamp lies in the future.")
    return await _resolved(directory, found, shard, AtTime(max(time_ms, 0)))


async def fetch(
    directory: Directory, found: Found, shard: Shard, start: int, *, bytes_max: int, wait_ms: int
) -> tuple[Fetched, int]:
    """Batches from `start` on, and where they begin: later than `start` when retention has taken what was there.

    A leader that moves is waited for. Raises StreamkitError when that takes too long, ApiError for what is gone.
    """
    async def ask() -> tuple[Fetched, int]:
        nonlocal start
        while True:
            try:
                return await directory.client.fetch(shard, start, bytes_max=bytes_max, wait_ms=wait_ms), start
            except SequenceTrimmed as error:
                log_start = int(error.facts.get("log_start", 0))
                if log_start <= start:
                    raise
                start = log_start

    return await _patiently(directory, found, shard, ask)


async def _resolved(directory: Directory, found: Found, shard: Shard, position: Position) -> int:
    async def ask() -> int:
        try:
            return (await directory.client.resolve_position(shard, position)).sequence
        except InvalidPosition:
            raise _argument(found, shard, "the sequence number is of a record that is not there.") from None

    return await _patiently(directory, found, shard, ask)


async def _patiently(directory: Directory, found: Found, shard: Shard, ask: Callable[[], Awaitable[T]]) -> T:
    """What a shard's leader answers, wherever it is by then. Raises StreamkitError, ApiError when nobody does."""
    backoff = Backoff(directory.client.runtime.random, 10, 200)
    until_ms = directory.clock.monotonic_ms() + _PATIENCE_MS
    while True:
        try:
            return await ask()
        except ShardNotFound:
            await _check_there(directory, found, shard)
            if directory.clock.monotonic_ms() >= until_ms:
                raise _nowhere(found, shard) from None
            await asyncio.sleep(backoff.next_ms() / 1_000)
        except (Unavailable, TimedOut):
            if directory.clock.monotonic_ms() >= until_ms:
                raise
            await _seek_leader(directory, shard, backoff)


async def _check_there(directory: Directory, found: Found, shard: Shard) -> None:
    """Raises ApiError (ResourceNotFoundException) when a shard that its node does not know has left the map, too."""
    _, now = await directory.with_shard(found.place, shard.ordinal, shard.uuid)
    if now is None:
        raise no_such_stream(found.place)
    directory.forget(found.place)


def _nowhere(found: Found, shard: Shard) -> ApiError:
    return unavailable(f"Shard {shard.id} in stream {found.place.name} cannot be read now; try again.")


async def _seek_leader(directory: Directory, shard: Shard, backoff: Backoff) -> None:
    with contextlib.suppress(StreamkitError):          # what is asked for next says what is wrong
        await directory.client.find_leader(shard)
    await asyncio.sleep(backoff.next_ms() / 1_000)


def _sequence(found: Found, shard: Shard, number: str) -> int:
    try:
        parsed = parse_sequence_number(number)
    except StreamkitError:
        raise _argument(found, shard, f"{number} is not a sequence number of this stream.") from None
    if parsed.ordinal != shard.ordinal or parsed.created_s != shard.created_ms // 1_000:
        raise _argument(
            found, shard, f"Invalid StartingSequenceNumber. It encodes shardId-{parsed.ordinal:012d}, while it was "
            f"used in a call to a shard with {shard.id}, or a stream that is there no more",
        )  # fmt: skip
    return parsed.sequence


def _argument(found: Found, shard: Shard, text: str) -> ApiError:
    place = found.place
    return invalid_argument(f"{text} (shard {shard.id} in stream {place.name} under account {place.account})")
