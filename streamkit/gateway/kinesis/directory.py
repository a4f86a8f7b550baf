"""The streams of the Kinesis API: what the notes say of them and what lies behind, found and changed together.

    CREATING ──▶ ACTIVE ⇄ UPDATING ──▶ DELETING ──▶ gone

A change is written to the stream's note first, carried out by a task, and taken out of the note again; the status
follows from the note and from what exists. A gateway that dies in between leaves the change in the note, and the next
one that finds it there for `_ABANDONED_MS` carries it out: every change may be carried out twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from streamkit._core.hashing import ShardTable
from streamkit.client.client import AsyncClient
from streamkit.errors import (
    LimitReached,
    ShardClosed,
    ShardNotFound,
    StreamBusy,
    StreamExists,
    StreamkitError,
    StreamNotFound,
    TimedOut,
    Unavailable,
)
from streamkit.gateway.errors import ApiError, in_use, invalid_argument, limit_exceeded, not_found
from streamkit.gateway.kinesis.config import KinesisConfig
from streamkit.gateway.kinesis.names import Place, is_plain, native_name
from streamkit.gateway.kinesis.notes import ConsumerNote, Pending, StreamNote, decode_note, encode_note
from streamkit.metadata.reshard import open_shards, scale
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Clock
from streamkit.runtime.tasks import Tasks

logger = logging.getLogger("streamkit.gateway")
T = TypeVar("T")

_FRESH_MS = 1_000              # how old what puts and reads know of a stream may be
_ABANDONED_MS = 15_000         # a change in a note for so long has nobody who carries it out
_KNOWN_MAX = 10_000
_SWAP_TRIES = 20
_JOBS_AT_ONCE = 4
_CREATE_PATIENCE = 20          # times as long as for other changes


@dataclass(slots=True)
class Found:
    """A stream as it was found. revision: of its note, 0 for none. stream: None while it is being made."""

    place: Place
    note: StreamNote
    revision: int
    stream: StreamDescription | None
    _table: ShardTable | None = None
    _origins: list[tuple[int, int]] | None = None
    _by_ordinal: dict[int, Shard] | None = None

    @property
    def status(self) -> str:
        pending = self.note.pending
        if self.stream is None:
            return "DELETING" if pending is not None and pending.kind == "delete" else "CREATING"
        if pending is None or pending.kind == "create":
            return "ACTIVE"                # what was to be made is there
        return "DELETING" if pending.kind == "delete" else "UPDATING"

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.stream.shards if self.stream is not None else ()

    @property
    def open_shards(self) -> list[Shard]:
        """In the order of their hash keys."""
        return open_shards(self.stream) if self.stream is not None else []

    @property
    def created_ms(self) -> int:
        return self.stream.created_ms if self.stream is not None else self.note.created_ms

    @property
    def table(self) -> ShardTable:
        """Which shard takes a hash key, by ordinal."""
        if self._table is None:
            ranges: list[tuple[int, int] | None] = [None] * (self.shards[-1].ordinal + 1)
            for shard in self.shards:
                if shard.closed_ms is None:
                    ranges[shard.ordinal] = (shard.hash_start, shard.hash_end)
            self._table = ShardTable(ranges)
        return self._table

    @property
    def origins(self) -> list[tuple[int, int]]:
        """(ordinal, creation) of each shard, by ordinal; those that have expired have none."""
        if self._origins is None:
            self._origins = [(ordinal, 0) for ordinal in range(self.shards[-1].ordinal + 1)]
            for shard in self.shards:
                self._origins[shard.ordinal] = (shard.ordinal, shard.created_ms)
        return self._origins

    def shard(self, ordinal: int | None) -> Shard | None:
        if self._by_ordinal is None:
            self._by_ordinal = {shard.ordinal: shard for shard in self.shards}
        return None if ordinal is None else self._by_ordinal.get(ordinal)


class Directory:
    """Streams of every account and region, found by place."""

    def __init__(self, client: AsyncClient, clock: Clock, config: KinesisConfig) -> None:
        self.client = client
        self.clock = clock
        self.config = config
        self._known: dict[Place, tuple[int, Found]] = {}
        self._asking: dict[Place, asyncio.Task[Found]] = {}
        self._jobs: dict[Place, asyncio.Task[ApiError | None]] = {}
        self._turns = asyncio.Semaphore(_JOBS_AT_ONCE)
        self._tasks = Tasks("kinesis")

    async def close(self) -> None:
        await self._tasks.close()

    # -- finding -------------------------------------------------------------------------------------------

    async def find(self, place: Place) -> Found:
        """As it is now. Raises ApiError (ResourceNotFoundException)."""
        note, revision = await self._read(place)
        native = note.native if note is not None else native_name(
            place, account=self.config.account, region=self.config.region
        )  # fmt: skip
        making = note is not None and note.pending is not None and note.pending.kind == "create" and place in self._jobs
        stream = None if making else await self._describe(native)      # the broker answers once it is made
        if stream is None and note is not None and note.pending is None:
            stream = await self._heard(lambda: self._describe(native))
        if note is None and (stream is None or not is_plain(native)):
            self._known.pop(place, None)
            raise no_such_stream(place)
        if note is None and stream is not None:
            note = self._default_note(stream)
        assert note is not None, "one of them was found"
        if stream is None and note.pending is None:
            # It was deleted behind this API's back, by streamkit's own library.
            if await self.client.swap_notes([(place.key, revision, None)]) is not None:
                await self._remove_consumers(place)
            self._known.pop(place, None)
            raise no_such_stream(place)
        found = Found(place, note, revision, stream)
        if note.pending is not None:
            self._take_over(found)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[place] = (self.clock.monotonic_ms() + _FRESH_MS, found)
        return found

    async def _describe(self, native: str) -> StreamDescription | None:
        try:
            return await self.client.stream(native, refresh=True)
        except StreamNotFound:
            return None

    async def _heard(self, look: Callable[[], Awaitable[T | None]]) -> T | None:
        """What `look` finds once this node has heard of what another has done; None when that takes too long."""
        until_ms = self.clock.monotonic_ms() + int(self.config.lag_seconds * 1_000)
        backoff = Backoff(self.client.runtime.random, 5, 100)
        while self.clock.monotonic_ms() < until_ms:
            await asyncio.sleep(backoff.next_ms() / 1_000)
            if (seen := await look()) is not None:
                return seen
        return None

    async def look(self, place: Place) -> Found:
        """As it was a second ago at most: for puts and reads. Raises ApiError (ResourceNotFoundException)."""
        known = self._known.get(place)
        if known is not None and self.clock.monotonic_ms() < known[0]:
            return known[1]
        task = self._asking.get(place)
        if task is None:
            task = self._asking[place] = asyncio.get_running_loop().create_task(self.find(place))
            task.add_done_callback(lambda done: self._asked(place, done))
        return await asyncio.shield(task)

    def _asked(self, place: Place, task: asyncio.Task[Found]) -> None:
        self._asking.pop(place, None)
        if not task.cancelled():
            task.exception()                   # whoever waited raises it; nobody may have

    def forget(self, place: Place) -> None:
        """What is known of it is out of date."""
        self._known.pop(place, None)

    async def usable(self, place: Place) -> Found:
        """For puts and reads: a stream that is being made is not there yet. Raises ApiError."""
        found = await self.look(place)
        if found.stream is None:
            found = await self.find(place)
        if found.stream is None:
            seen = await self._heard(lambda: self._made(place))
            if seen is None:
                raise no_such_stream(place)
            found = seen
        return found

    async def _made(self, place: Place) -> Found | None:
        found = await self.find(place)
        return found if found.stream is not None else None

    async def with_shard(
        self, place: Place, ordinal: int | None, uuid: bytes | None = None, *, fresh: bool = False
    ) -> tuple[Found, Shard | None]:
        """A usable stream and one of its shards; None when it is not there, or is another one than that of `uuid`.

        Nobody is told so by what is a second old, or by a node that lags: a reader takes a shard that is missing for
        one that is finished. fresh: nothing else is told by it either. Raises ApiError.
        """
        found: Found | None = None

        async def look(*, fresh: bool = True) -> tuple[Found, Shard] | None:
            nonlocal found
            if fresh:
                self.forget(place)
            found = await self.usable(place)
            shard = found.shard(ordinal)
            return (found, shard) if shard is not None and uuid in (None, shard.uuid) else None

        seen = None if fresh else await look(fresh=False)
        if seen is None and (seen := await look()) is None and ordinal is not None:
            assert found is not None, "it was looked for"
            if ordinal > found.shards[-1].ordinal:         # of those that were there once none comes back
                seen = await self._heard(look)
        assert found is not None, "it was looked for"
        return seen or (found, None)

    async def active(self, place: Place) -> Found:
        """For changes. Raises ApiError (ResourceNotFoundException, ResourceInUseException)."""
        found = await self.find(place)
        if found.status != "ACTIVE":
            raise not_active(found)
        return found

    async def all(self, account: str, region: str) -> list[Found]:
        """Every stream of an account and region by name; the descriptions have no shards."""
        space = Place(account, region, "").key
        notes: dict[str, tuple[StreamNote, int]] = {}
        after = ""
        while page := await self.client.list_notes(space, after=after):
            notes.update((key[len(space):], (decode_note(StreamNote, key, v), r)) for key, v, r in page)
            after = page[-1][0]
        natives = {stream.name: stream for stream in await self.client.list_streams()}
        found = [
            Found(Place(account, region, name), note, revision, natives.get(note.native))
            for name, (note, revision) in notes.items()
            if note.native in natives or note.pending is not None
        ]
        if (account, region) == (self.config.account, self.config.region):
            found += [
                Found(Place(account, region, name), self._default_note(stream), 0, stream)
                for name, stream in natives.items() if name not in notes and is_plain(name)
            ]
        return sorted(found, key=lambda each: each.place.name)

    async def _read(self, place: Place) -> tuple[StreamNote | None, int]:
        value, revision = await self.client.read_note(place.key)
        return (None if value is None else decode_note(StreamNote, place.key, value)), revision

    def _default_note(self, stream: StreamDescription) -> StreamNote:
        return StreamNote(
            native=stream.name, created_ms=stream.created_ms,
            max_record_kib=max(1_024, stream.config.record_bytes_max >> 10),
        )

    # -- consumers -----------------------------------------------------------------------------------------

    async def consumers(self, place: Place) -> list[tuple[ConsumerNote, int]]:
        """By name, with their revisions."""
        found: list[tuple[ConsumerNote, int]] = []
        after = ""
        while page := await self.client.list_notes(place.consumers, after=after):
            found += [(decode_note(ConsumerNote, key, value), revision) for key, value, revision in page]
            after = page[-1][0]
        return found

    async def _remove_consumers(self, place: Place) -> None:
        for consumer, revision in await self.consumers(place):
            await self.client.swap_notes([(place.consumers + consumer.name, revision, None)])

    # -- changing ------------------------------------------------------------------------------------------

    async def change(self, place: Place, edit: Callable[[Found], StreamNote | None]) -> Found:
        """Write what `edit` makes of the note; None: leave it. It may be asked again when others were quicker."""
        backoff = Backoff(self.client.runtime.random, 5, 200)
        for _ in range(_SWAP_TRIES):
            found = await self.find(place)
            note = edit(found)
            if note is None or note == found.note:
                return found
            revision = await self.client.swap_notes([(place.key, found.revision, encode_note(note))])
            if revision is not None:
                self.forget(place)
                return Found(place, note, revision, found.stream)
            await asyncio.sleep(backoff.next_ms() / 1000)
        raise ApiError("ServiceUnavailable", f"Stream {place.name} is being changed by others; try again", 503)

    async def create(self, place: Place, note: StreamNote) -> None:
        """Raises ApiError (ResourceInUseException)."""
        native = native_name(place, account=self.config.account, region=self.config.region)
        value, revision = await self.client.read_note(place.key)
        taken = value is not None
        if not taken:
            with contextlib.suppress(StreamNotFound):
                await self.client.stream(native, refresh=True)
                taken = True
        if taken:
            try:
                await self.find(place)
            except ApiError:
                revision = 0                           # a note whose stream is gone went, too
            else:
                raise stream_exists(place)
        pending = Pending("create", self.clock.now_ms())
        note = msgspec.structs.replace(note, native=native, created_ms=self.clock.now_ms(), pending=pending)
        revision = await self.client.swap_notes([(place.key, revision, encode_note(note))]) or 0
        if not revision:
            raise stream_exists(place)
        await self._begin(Found(place, note, revision, None))

    async def start(self, place: Place, pending: Pending, *, anyhow: bool = False) -> Found:
        """Begin a change of an ACTIVE stream; anyhow: whatever its status. The stream as it was before."""

        def edit(found: Found) -> StreamNote:
            if found.status != "ACTIVE" and not anyhow:
                raise not_active(found)
            return msgspec.structs.replace(found.note, pending=pending)

        found = await self.change(place, edit)
        await self._begin(found)
        return found

    async def _begin(self, found: Found) -> None:
        # Most changes take milliseconds: what is wrong with them can still be told, and what is done need not be
        # asked for.
        job, pending = self._start_job(found), found.note.pending
        seconds = self.config.settle_seconds
        if pending is not None and pending.kind == "create":
            seconds *= _CREATE_PATIENCE        # one that cannot be made must not seem to be, and vanish
        await asyncio.wait({job}, timeout=seconds)
        if job.done() and not job.cancelled() and job.exception() is None and (error := job.result()) is not None:
            raise error

    def _start_job(self, found: Found) -> asyncio.Task[ApiError | None]:
        before = self._jobs.get(found.place)
        job = self._jobs[found.place] = self._tasks.start(
            self._carry_out(found, before), f"job.{found.place.name}"
        )
        job.add_done_callback(lambda done: self._done(found.place, done))
        return job

    def _done(self, place: Place, job: asyncio.Task[ApiError | None]) -> None:
        self.forget(place)
        if self._jobs.get(place) is job:
            del self._jobs[place]

    def _take_over(self, found: Found) -> None:
        pending = found.note.pending
        assert pending is not None, "asked for streams with a change alone"
        if found.place not in self._jobs and self.clock.now_ms() - pending.since_ms > _ABANDONED_MS:
            logger.info("kinesis.job_taken_over", extra={"facts": {"stream": found.place.name, "kind": pending.kind}})
            self._start_job(found)

    async def _carry_out(self, found: Found, before: asyncio.Task[ApiError | None] | None) -> ApiError | None:
        """Why it was refused; None when it is done, here or elsewhere."""
        if before is not None:
            await asyncio.wait({before})
        backoff = Backoff(self.client.runtime.random, 50, 2_000)
        waited = before is not None or self._turns.locked()
        while True:
            try:
                async with self._turns:                # of the broker's, who changes one stream after the other
                    if not waited or await self._is_wanted(found):     # else another gateway has done it
                        await self._work(found)
                return None
            except (Unavailable, TimedOut, StreamBusy) as error:
                logger.info("kinesis.job_waits", extra={"facts": {"stream": found.place.name, "error": str(error)}})
                await asyncio.sleep(backoff.next_ms() / 1000)
                waited = True
            except StreamkitError as error:
                await self._settle(found)
                return _refused(found.place, error)

    async def _is_wanted(self, found: Found) -> bool:
        note, _ = await self._read(found.place)
        return note is not None and note.pending == found.note.pending

    async def _work(self, found: Found) -> None:
        note, client, pending = found.note, self.client, found.note.pending
        assert pending is not None, "asked for streams with a change alone"
        match pending.kind:
            case "create":
                with contextlib.suppress(StreamExists):        # by who began with it
                    await client.create_stream(note.native, StreamConfig(
                        shards=note.shards, retention_hours=self.config.retention_hours,
                        record_bytes_max=note.max_record_kib << 10,
                    ))  # fmt: skip
            case "delete":
                with contextlib.suppress(StreamNotFound):
                    await client.delete_stream(note.native)
                await self._remove_consumers(found.place)
            case "split":
                with contextlib.suppress(ShardClosed):
                    await client.split_shard(note.native, pending.shards[0], int(pending.at))
            case "merge":
                with contextlib.suppress(ShardClosed):
                    await client.merge_shards(note.native, *pending.shards)
            case "scale":
                await self._scale(note.native, pending.shards[0])
        await self._settle(found)

    async def _scale(self, native: str, count: int) -> None:
        """To `count` shards of nearly equal ranges, none of which has more than the two parents that the API can name.

        Where one step would give a shard three of them, shards are split at the new borders and merged two by two.
        """
        client = self.client
        stream = await client.stream(native, refresh=True)
        if (plan := scale(stream, count)) is None:
            return
        if all(len(child.parents) <= 2 for child in plan.children):
            await client.scale_stream(native, count)
            return
        for start, end in even_ranges(count):
            inside = [shard for shard in open_shards(stream) if shard.hash_start < end and shard.hash_end > start]
            if inside[0].hash_start < start:
                raise StreamBusy(f"{native} is being changed by others", stream=native, status="changing")
            if inside[-1].hash_end > end:
                stream = await client.split_shard(native, inside[-1].ordinal, end)
                inside[-1] = next(shard for shard in open_shards(stream) if shard.hash_end == end)
            while len(inside) > 1:
                left, right = inside[:2]
                stream = await client.merge_shards(native, left.ordinal, right.ordinal)
                inside[:2] = [next(shard for shard in open_shards(stream) if shard.hash_start == left.hash_start)]

    async def _settle(self, found: Found) -> None:
        """The change is out of the note, unless it is another one by now."""
        place, pending = found.place, found.note.pending
        assert pending is not None, "a change is settled once"
        while True:
            note, revision = await self._read(place)
            if note is None or note.pending != pending:
                return
            gone = pending.kind == "delete"
            if pending.kind == "create":
                try:
                    await self.client.stream(note.native, refresh=True)
                except StreamNotFound:
                    gone = True                                # it could not be made
            value = None if gone else encode_note(msgspec.structs.replace(note, pending=None))
            if await self.client.swap_notes([(place.key, revision, value)]) is not None:
                self.forget(place)
                return


def _refused(place: Place, error: StreamkitError) -> ApiError:
    match error:
        case LimitReached():
            return limit_exceeded(f"{error} (account {place.account}, {place.region})")
        case ShardNotFound() | StreamNotFound():
            return not_found(str(error))
        case _:
            return invalid_argument(str(error))


def no_such_stream(place: Place) -> ApiError:
    return not_found(f"Stream {place.name} under account {place.account} not found.")


def stream_exists(place: Place) -> ApiError:
    return in_use(f"Stream {place.name} under account {place.account} already exists.")


def not_active(found: Found) -> ApiError:
    place = found.place
    return in_use(
        f"Stream {place.name} under account {place.account} not ACTIVE, instead in state {found.status}"
    )
