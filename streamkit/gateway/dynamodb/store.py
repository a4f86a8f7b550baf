"""Tables and items as notes, and nothing else between an operation and the metadata store.

    dynamodb/<account>/<region>/tables/<name>                       a table (`definitions`)
    dynamodb/<account>/<region>/items/<name>/<table id>/<key>       an item; <key> as `keys` writes it
    dynamodb/<account>/<region>/tokens/<token>                      a transaction that was carried out (`transactions`)

An item is JSON, or "z" and the same deflated when it is large. The table's id is part of an item's name: what a writer
that raced with DeleteTable leaves behind belongs to no table, and the next CreateTable of that name removes it.
Nothing is kept in memory but the sizes of tables, which are estimates.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from streamkit.gateway.dynamodb.definitions import Place, TableNote
from streamkit.gateway.dynamodb.errors import DynamoError, invalid, table_missing, unsupported
from streamkit.gateway.dynamodb.values import Item, item_size
from streamkit.gateway.errors import corrupt_note
from streamkit.model.note import NOTE_BYTES_MAX, NOTE_SWAP_BYTES_MAX, Note
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Clock, Random

ITEMS_MAX = 100_000                        # of a table; several nodes may overshoot it by what each adds meanwhile
_PLAIN_BYTES_MAX = 64 * 1024
_INFLATED_BYTES_MAX = 16 * 1024 * 1024
_TRIES_MAX = 40                            # of one write that keeps losing races
_STEP_FIRST = 32                           # notes listed first; then as many as make up about a step's bytes
_STEP_MAX = 250                            # as large items may follow small ones: 100 MiB at most
_STEP_BYTES = 2 * 1024 * 1024
_SIZE_FRESH_MS = 60_000
_RECOUNT_AFTER = 10_000                    # items made here
_SWEEP_AT_ONCE = 100

_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(dict[str, dict[str, object]]).decode
_decode_table = msgspec.json.Decoder(TableNote).decode


class NoteClient(Protocol):
    """What of AsyncClient is used here."""

    async def read_note(self, key: str) -> tuple[bytes | None, int]: ...
    async def swap_notes(self, swaps: Sequence[tuple[str, int, bytes | None]]) -> int | None: ...
    async def list_notes(self, prefix: str, *, after: str = "", count_max: int = 1000) -> list[Note]: ...


class Stored(NamedTuple):
    """item: None when there is none."""

    item: Item | None
    revision: int


class Swap(NamedTuple):
    """An item's note and what it becomes."""

    key: str
    revision: int
    item: Item | None


@dataclass(slots=True)
class _Size:
    """Of a table, when it was last counted, and what was made here since."""

    count: int
    size: int
    counted_ms: int
    made: int = 0


def encode_item(item: Item) -> bytes:
    """Raises DynamoError: what the store cannot take in one note."""
    plain = _encode(item)
    value = plain if len(plain) <= _PLAIN_BYTES_MAX else b"z" + zlib.compress(plain, 1)
    if len(value) > NOTE_BYTES_MAX or len(plain) > _INFLATED_BYTES_MAX:
        raise invalid("Item size has exceeded the maximum allowed size")
    return value


def decode_item(key: str, value: bytes) -> Item:
    """Raises CorruptFile."""
    try:
        if value.startswith(b"z"):
            value = zlib.decompressobj().decompress(value[1:], _INFLATED_BYTES_MAX)
        return _decode_item(value)
    except (msgspec.MsgspecError, zlib.error) as error:
        raise corrupt_note(key, error) from error


class Store:
    """Raises StreamkitError throughout, as the client does: what was asked may then have been done or not."""

    def __init__(self, notes: NoteClient, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self._notes = notes
        self._sizes: dict[str, _Size] = {}

    # Tables.

    async def find_table(self, place: Place, name: str) -> tuple[TableNote | None, int]:
        key = place.table_key(name)
        value, revision = await self._notes.read_note(key)
        return (None, 0) if value is None else (self._table(key, value), revision)

    async def table(self, place: Place, name: str) -> TableNote:
        """Raises DynamoError when there is none."""
        table, _ = await self.find_table(place, name)
        if table is None:
            raise table_missing()
        return table

    async def put_table(self, place: Place, name: str, table: TableNote | None, revision: int) -> bool:
        """False: somebody else changed it."""
        value = None if table is None else _encode(table)
        return await self._notes.swap_notes([(place.table_key(name), revision, value)]) is not None

    async def tables(self, place: Place, after: str, count_max: int) -> list[TableNote]:
        """In order of their names, which follow `after`."""
        prefix = place.table_key("")
        found = await self._notes.list_notes(prefix, after=prefix + after, count_max=count_max)
        return [self._table(note.key, note.value) for note in found]

    def _table(self, key: str, value: bytes) -> TableNote:
        try:
            return _decode_table(value)
        except msgspec.MsgspecError as error:
            raise corrupt_note(key, error) from error

    async def remove_items(self, place: Place, table: TableNote) -> None:
        """Of a table that is gone."""
        prefix = place.items_prefix(table.name, table.id)
        after = ""
        while notes := await self._notes.list_notes(prefix, after=after, count_max=_SWEEP_AT_ONCE):
            after = notes[-1].key
            await self._remove(notes)

    async def remove_orphans(self, place: Place, table: TableNote) -> None:
        """What writers left behind that raced with the deletion of an earlier table of that name.

        A note that is listed before the table is seen to be still the one that was made here belongs to it or to
        nobody: a newer table can only come after this one.
        """
        prefix, kept = place.items_prefix(table.name), place.items_prefix(table.name, table.id)
        after = ""
        while notes := await self._notes.list_notes(prefix, after=after, count_max=_SWEEP_AT_ONCE):
            after = notes[-1].key
            orphans = [note for note in notes if not note.key.startswith(kept)]
            if not orphans:
                after = max(after, kept + "~~")                # past all that an encoded key begins with
                continue
            found, _ = await self.find_table(place, table.name)
            if found is None or found.id != table.id:
                return
            await self._remove(orphans)

    async def _remove(self, notes: Sequence[Note]) -> None:
        if await self._notes.swap_notes([(note.key, note.revision, None) for note in notes]) is None:
            for note in notes:                                  # one of them was changed or removed meanwhile
                await self._notes.swap_notes([(note.key, note.revision, None)])

    # Items.

    @staticmethod
    def item_key(place: Place, table: TableNote, key: Item) -> str:
        """The name of the item's note. Raises DynamoError: too long."""
        return place.items_prefix(table.name, table.id) + table.keys.encode(key)

    async def read(self, note: str) -> Stored:
        value, revision = await self._notes.read_note(note)
        return Stored(None if value is None else decode_item(note, value), revision)

    async def read_many(self, notes: Sequence[str]) -> list[Stored]:
        """In their order; not of one moment."""
        found: list[Stored] = []
        for at in range(0, len(notes), 16):
            found += await asyncio.gather(*(self.read(note) for note in notes[at : at + 16]))
        return found

    async def swap(self, swaps: Sequence[Swap], more: Sequence[tuple[str, int, bytes | None]] = ()) -> bool:
        """All or nothing; False: one of them is no longer what it was. Raises DynamoError: too large together."""
        notes = [(each.key, each.revision, None if each.item is None else encode_item(each.item)) for each in swaps]
        notes += more
        if len(notes) > 1 and sum(len(value or b"") for _, _, value in notes) > NOTE_SWAP_BYTES_MAX:
            raise unsupported(f"A transaction of more than {NOTE_SWAP_BYTES_MAX} bytes")
        return await self._notes.swap_notes(notes) is not None

    async def read_raw(self, key: str) -> tuple[bytes | None, int]:
        return await self._notes.read_note(key)

    async def list_raw(self, prefix: str, count_max: int) -> list[Note]:
        return await self._notes.list_notes(prefix, count_max=count_max)

    async def swap_raw(self, swaps: Sequence[tuple[str, int, bytes | None]]) -> bool:
        return await self._notes.swap_notes(swaps) is not None

    async def items(
        self, place: Place, table: TableNote, start: str = "", after: str = ""
    ) -> AsyncIterator[tuple[str, Item]]:
        """Encoded keys that begin with `start` and follow `after`, with their items, in the order of the keys.

        Read a few MiB at a time, so what others change meanwhile may be seen or not.
        """
        prefix = place.items_prefix(table.name, table.id)
        cursor = prefix + max(start, after)
        step = _STEP_FIRST
        if start and not after:
            cursor = ""
        while True:
            notes = await self._notes.list_notes(prefix + start, after=cursor, count_max=step)
            for note in notes:
                yield note.key.removeprefix(prefix), decode_item(note.key, note.value)
            if len(notes) < step:
                return
            cursor = notes[-1].key
            mean = 1 + sum(len(note.value) + len(note.key) for note in notes) // len(notes)
            step = max(1, min(_STEP_MAX, _STEP_BYTES // mean))

    # How large a table is.

    async def size(self, place: Place, table: TableNote) -> tuple[int, int]:
        """Items and their bytes, as counted within the last minute."""
        known = self._sizes.get(table.id)
        if known is None or self.clock.monotonic_ms() - known.counted_ms > _SIZE_FRESH_MS:
            known = await self._count(place, table)
        return known.count + known.made, known.size

    async def _count(self, place: Place, table: TableNote) -> _Size:
        count = size = 0
        async for _, item in self.items(place, table):
            count += 1
            size += item_size(item)
        if len(self._sizes) > 1_000:
            self._sizes.clear()
        self._sizes[table.id] = known = _Size(count, size, self.clock.monotonic_ms())
        return known

    async def make_room(self, place: Place, table: TableNote) -> None:
        """To be called before an item is made. Raises DynamoError when the table is full."""
        known = self._sizes.get(table.id)
        if known is not None and known.count + known.made >= ITEMS_MAX:
            stale = self.clock.monotonic_ms() - known.counted_ms > _SIZE_FRESH_MS
        else:
            stale = known is None or known.made >= _RECOUNT_AFTER
        if known is None or stale:
            known = await self._count(place, table)
        if known.count + known.made >= ITEMS_MAX:
            raise unsupported(f"A table of more than {ITEMS_MAX} items")
        known.made += 1

    # Races.

    def patience(self) -> Patience:
        return Patience(Backoff(self.random, first_ms=4.0, most_ms=250.0))


class Patience:
    """How often a write that loses races is done again."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff

    async def wait(self) -> None:
        """Raises DynamoError when it was too often: clients try again later."""
        if self._backoff.tries >= _TRIES_MAX:
            raise DynamoError(
                "ProvisionedThroughputExceededException",
                "The level of configured provisioned throughput for the table was exceeded: "
                "too many writers change the same item.",
            )
        await asyncio.sleep(self._backoff.next_ms() / 1_000)
