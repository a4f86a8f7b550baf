"""Where a named producer went on: its `progress.Progress`, kept in notes and found again in the log.

    note of the producer     who it is, and from which sequence of each shard records must be looked at
    notes of its channels    64 of them; up to which number everything in a channel is stored

A note is written a second after something was settled, and with flush and close. An instance that begins has shut its
elder ones out of every shard (`naming.py`), so that what it finds in the log is all there will ever be. It reads the
notes, then its name's batches from where they say on. Notes are changed by compare-and-swap: whoever comes late reads
what the other wrote, and keeps the higher number of each channel; both told the truth.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, Protocol
from zlib import crc32

import msgspec

from streamkit._core.batch import Batch, RecordContext
from streamkit.errors import ProducerFenced, SequenceTrimmed, StreamkitError
from streamkit.model.entry import EPOCH
from streamkit.model.note import Note
from streamkit.model.position import LATEST
from streamkit.model.shard import Shard
from streamkit.producer.entry import PutResult
from streamkit.producer.progress import HEADER, NOTHING, Mark, Progress, read_mark
from streamkit.producer.sender import Sender
from streamkit.runtime.tasks import Tasks

_log = logging.getLogger("streamkit.producer")

_WRITE_S = 1.0                             # between two notes
_AGAIN_S = 0.05                            # between two looks at notes that were not the last
_CHANNEL_NOTES = 64
_HAS_HEADERS = 4                           # of a batch's attributes

_Number = Annotated[int, msgspec.Meta(ge=0)]


class _Where(NamedTuple):
    """The note of the producer."""

    producer_id: _Number
    producer_epoch: _Number
    ends: dict[bytes, _Number]             # shard's uuid → where to begin; a shard that is missing: with its first


_encode = msgspec.msgpack.Encoder().encode
_decode_where = msgspec.msgpack.Decoder(_Where).decode
_decode_channels = msgspec.msgpack.Decoder(dict[str, _Number]).decode


class Reading(Protocol):
    """What it takes of client.AsyncClient."""

    async def fetch(self, shard: Shard, start: int, *, wait_ms: int = 500) -> Any: ...
    async def resolve_position(self, shard: Shard, position: Any) -> Any: ...
    async def list_notes(self, prefix: str, *, after: str = "", count_max: int = 1000) -> list[Note]: ...
    async def swap_notes(self, swaps: list[tuple[str, int, bytes | None]]) -> int | None: ...


class Resumption:
    """The progress of one producer in one stream. On the sender's loop, except for `progress`."""

    def __init__(self, client: Reading, sender: Sender, name: str) -> None:
        stream = sender.stream
        self.progress: Progress
        self._client = client
        self._sender = sender
        # Of this stream: one that is made again under the same name begins anew.
        self._prefix = f"app-seq/{stream.name}/{stream.created_ms}/{blake2b(name.encode(), digest_size=16).hexdigest()}"
        self._revisions: dict[str, int] = {}
        self._written: dict[str, int] = {}           # settled, as the notes say, also of what others noted
        self._where: _Where | None = None            # as written
        self._ends: dict[bytes, int] = {}            # of each shard, one past what is known to be stored
        self._turn = 0                               # whose end was asked for last
        self._timer: asyncio.TimerHandle | None = None
        self._again = False                          # something was settled while a note was being written
        self._writing = asyncio.Lock()
        self._tasks = Tasks("producer.resumption")

    async def begin(self) -> None:
        """Read the notes and the log; afterwards numbers may be put. Raises what asking raises."""
        while not await self._begin():  # noqa: ASYNC110 (nobody tells when a store is up to date again)
            await asyncio.sleep(_AGAIN_S)

    async def _begin(self) -> bool:
        # False: what was read were not the last notes. A store may answer with old ones, and they would hide what
        # is stored. The channels' notes are written before the producer's, so that its revision vouches for both.
        settled, where = await self._read_notes()
        self._written = dict(settled)
        self._ends = {}
        stream, identity = self._sender.stream, self._sender.identity
        stored: list[tuple[Mark, PutResult]] = []
        if where is None:
            for shard in stream.shards:
                self._ends[shard.uuid] = int((await self._client.resolve_position(shard, LATEST)).high_watermark)
        else:
            self._ends = dict(where.ends)
            ids = {where.producer_id, identity.producer_id}
            for shard in stream.shards:
                stored += await self._find(shard, where.ends.get(shard.uuid, 0), ids)
        duplicate = PutResult(stream.name, "", "", EPOCH, True)
        self.progress = Progress(settled, stored, dict(self._ends), duplicate)
        _, first = self._snapshot()
        self._check_newest(where, first)
        if not await self._swap(self._prefix, _encode(first)):
            return False
        self._where = first                # before anything is put: a note leads to whatever is stored
        _log.info("producer.resumed stream=%s channels=%d found=%d", stream.name, len(settled), len(stored))
        return True

    async def _find(self, shard: Shard, start: int, ids: set[int]) -> list[tuple[Mark, PutResult]]:
        # The records of the name in the shard, up to what is readable now.
        context = RecordContext(self._sender.stream.name, shard.id, shard.ordinal, shard.created_ms, uuid=shard.uuid)
        stored: list[tuple[Mark, PutResult]] = []
        end = None
        while end is None or start < end:
            try:
                fetched = await self._client.fetch(shard, start, wait_ms=0 if end is None else 500)
            except SequenceTrimmed as error:
                start = int(error.facts["log_start"])
                continue
            end = int(fetched.high_watermark) if end is None else end
            for raw in fetched.batches:
                batch = Batch(raw, context, start)
                header = batch.read_header()
                if header.is_control or header.producer_id not in ids or not header.attributes & _HAS_HEADERS:
                    continue
                for record in batch:
                    mark = read_mark(record.headers.get(HEADER))
                    if mark is not None:
                        stored.append((mark, PutResult(
                            context.stream, shard.id, record.sequence_number, record.arrived, True, header.epoch
                        )))  # fmt: skip
            start = fetched.next_sequence
        return stored

    # ---- notes -------------------------------------------------------------------------------------------

    def soon(self) -> None:
        """Something was settled."""
        if len(self._tasks):
            self._again = True             # a write that takes long is waited for, instead of one more each second
        elif self._timer is None and self.progress.changed:
            self._timer = asyncio.get_running_loop().call_later(_WRITE_S, self._write_now)

    def _write_now(self) -> None:
        self._timer = None
        self._tasks.start(self._look_and_write(), "write")

    async def _look_and_write(self) -> None:
        # Others write to these shards, too: each in its turn tells its end, so that whoever begins reads little.
        shards = self._sender.stream.shards
        self._turn += 1
        shard = shards[self._turn % len(shards)]
        with suppress(StreamkitError):     # it has no leader at the moment
            self._saw(shard.uuid, int((await self._client.resolve_position(shard, LATEST)).high_watermark))
        await self.write()
        if self._again:
            self._again = False
            self._timer = asyncio.get_running_loop().call_later(_WRITE_S, self._write_now)

    def _saw(self, shard: bytes, end: int) -> None:
        self._ends[shard] = max(end, self._ends.get(shard, 0))

    async def write(self) -> None:
        """Write the notes down, if anything is new and they can be written; without them the log tells, only later."""
        try:
            await self._write()
        except StreamkitError as error:
            self.progress.changed = True
            _log.info("producer.note_failed stream=%s error=%s", self._sender.stream.name, error)

    async def _write(self) -> None:
        async with self._writing:
            settled, where = self._snapshot()
            # The channels first: a place to look from leaves out what their numbers tell.
            newer = [name for name in settled if settled[name] > self._written.get(name, NOTHING)]
            for number in sorted({_note_of(name) for name in newer}):
                await self._swap_channels(number, settled)
            if where != self._where:
                await self._swap_where(where)

    def _snapshot(self) -> tuple[dict[str, int], _Where]:
        """Up to where everything is settled, and from where on somebody who begins now had to look."""
        for shard, end in self._sender.ends().items():
            self._saw(shard, end)
        settled, ends = self.progress.snapshot(dict(self._ends))
        listed = {shard.uuid for shard in self._sender.stream.shards}
        who = self._sender.identity
        ends = {shard: end for shard, end in ends.items() if shard in listed}
        return settled, _Where(who.producer_id, who.producer_epoch, ends)

    async def _swap_channels(self, number: int, settled: dict[str, int]) -> None:
        key = f"{self._prefix}/{number:02}"
        channels = {
            name: max(settled.get(name, NOTHING), self._written.get(name, NOTHING))
            for name in settled | self._written if _note_of(name) == number
        }  # fmt: skip
        while not await self._swap(key, _encode(channels)):
            others, _ = await self._read_notes(key)
            for name in others:
                if _note_of(name) == number:
                    channels[name] = max(others[name], channels.get(name, 0))
        self._written |= channels

    async def _swap_where(self, where: _Where) -> None:
        while not await self._swap(self._prefix, _encode(where)):
            _, other = await self._read_notes(self._prefix)
            try:
                self._check_newest(other, where)
            except ProducerFenced:
                del self._revisions[self._prefix]      # so that the next try is refused, too
                raise
        self._where = where

    def _check_newest(self, found: _Where | None, ours: _Where) -> None:
        if found is not None and found[:2] > ours[:2]:
            raise ProducerFenced(
                "a newer instance of this producer keeps its notes", try_="stop this one",
                producer_id=ours.producer_id, epoch=ours.producer_epoch, newest=found.producer_epoch,
            )  # fmt: skip

    async def _swap(self, key: str, value: bytes) -> bool:
        revision = await self._client.swap_notes([(key, self._revisions.get(key, 0), value)])
        if revision is None:
            return False                   # an elder instance wrote, or we did and the answer was lost
        self._revisions[key] = revision
        return True

    async def _read_notes(self, only: str | None = None) -> tuple[dict[str, int], _Where | None]:
        # only: the note that was refused. The others keep their revisions: what they say must not be written over.
        found = await self._client.list_notes(self._prefix)
        revisions = {note.key: note.revision for note in found}
        self._revisions = revisions if only is None else self._revisions | {only: revisions.get(only, 0)}
        settled: dict[str, int] = {}
        where = None
        for note in found:
            if note.key == self._prefix:
                where = _decode_where(note.value)
            else:
                settled |= _decode_channels(note.value)
        return settled, where

    async def close(self) -> None:
        """The last note, unless there is nothing to tell."""
        self._stop_timer()
        if self.progress.changed:
            await self.write()
        await self._tasks.close()
        self._stop_timer()                 # of a write that ended meanwhile

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _note_of(channel: str) -> int:
    return crc32(channel.encode()) % _CHANNEL_NOTES
