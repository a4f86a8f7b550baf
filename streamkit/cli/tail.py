"""`streamkit tail`: show records, merged over shards in arrival order, then follow them live.

A shard that was split or merged comes before its children. Following goes on when a leader moves or a node restarts.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import clock, emit, instant, note, printable
from streamkit.cli.times import parse_instant_ms, parse_start

if TYPE_CHECKING:
    from streamkit._core.batch import Record
    from streamkit.client.client import AsyncClient
    from streamkit.expressions.condition import Condition
    from streamkit.model.position import Position
    from streamkit.model.shard import Shard
    from streamkit.model.stream import StreamDescription

FOLLOW_WAIT_MS = 1_000
_TRIES_QUIET = 4                    # a leader that moves is no news


@dataclass(frozen=True, slots=True)
class Choice:
    """What to show and how. until_ms: exclusive, by arrival."""

    decode: str
    raw: bool
    length_prefixed: bool
    key: str | None
    until_ms: int | None
    codec: str = "auto"

    def wants(self, record: Record[Any]) -> bool:
        return self.key is None or record.key == self.key


@dataclass(slots=True)
class ShardTail:
    """One shard's records from `next_sequence` on; `end` is where history stops and live begins."""

    client: AsyncClient
    stream: str
    shard: Shard
    log_start: int
    next_sequence: int
    end: int
    buffer: deque[Record[Any]] = field(default_factory=deque)
    closed: bool = False               # its last batch was read
    parents: list[ShardTail] = field(default_factory=list)
    where: Condition | None = None

    @property
    def has_history(self) -> bool:
        return bool(self.buffer) or self.next_sequence < self.end

    async def fill(self, wait_ms: int = 0) -> None:
        """Fetches once; the buffer may stay empty when only control batches were there."""
        from streamkit._core.batch import Batch, RecordContext

        fetched = await self.client.fetch(
            self.shard, self.next_sequence, wait_ms=wait_ms, where=None if self.where is None else self.where.text,
            codec="auto" if self.where is None else str(self.where.codec),
        )
        context = RecordContext(self.stream, self.shard.id, self.shard.ordinal, self.shard.created_ms)
        for raw in fetched.batches:
            batch = Batch(raw, context, self.next_sequence)
            if not batch.is_control:
                self.buffer.extend(batch if self.where is None else self.where.matching(batch))
            self.closed = self.closed or batch.is_closing
        self.next_sequence = max(fetched.next_sequence, fetched.log_start)

    async def first(self) -> Record[Any] | None:
        """The next record of history, left in the buffer; None when history is over, or a parent's is not."""
        if any(parent.has_history for parent in self.parents):
            return None
        while not self.buffer and self.next_sequence < self.end:
            await self.fill()
        return self.buffer[0] if self.buffer else None


@click.command()
@click.argument("stream")
@click.option("-n", "--last", type=click.IntRange(min=0), default=None, help="Start with the last N records.")
@click.option("-f/-F", "--follow/--no-follow", default=None, help="Go on with what arrives (default: on a terminal).")
@click.option("--from", "start", default=None, metavar="POSITION", help="trim_horizon, latest, a time, SHARD:SEQUENCE.")
@click.option("--until", default=None, metavar="TIME", help="Stop before records that arrived at or after TIME.")
@click.option("--shard", "shard_name", default=None, metavar="SHARD", help="Only this shard.")
@click.option("--key", default=None, help="Only records with this key.")
@click.option("--where", default=None, metavar="CONDITION", help="Only records that match, as \"data.total > 100\".")
@click.option(
    "--decode", type=click.Choice(["auto", "json", "msgpack", "text", "hex"]), default="auto", show_default=True,
    help="How to read payloads.",
)
@click.option("--raw", is_flag=True, help="Payloads and nothing else, one a line.")
@click.option("--length-prefixed", is_flag=True, help="With --raw: four bytes of length, big-endian, instead of lines.")
@common
@pass_invocation
def tail(
    invocation: Invocation, stream: str, last: int | None, follow: bool | None, start: str | None, until: str | None,
    shard_name: str | None, key: str | None, where: str | None, decode: str, raw: bool,
    length_prefixed: bool,
) -> None:  # fmt: skip
    """Show records, the newest last; follow them live.

    Without -n and --from, shows the last 10. History is merged over the shards in order of arrival.
    """
    if last is not None and start is not None:
        raise click.UsageError("-n and --from exclude each other")
    choice = Choice(decode, raw, length_prefixed, key, None if until is None else parse_instant_ms(until))
    live = follow if follow is not None else sys.stdout.isatty() and until is None
    only, position = (shard_name, None) if start is None else parse_start(start)
    count = last if last is not None else (10 if start is None else None)
    condition = None if where is None else _condition(where, choice)
    invocation.run(_tail(invocation, stream, choice, only or shard_name, position, count, live, condition))


def _condition(where: str, choice: Choice) -> Condition:
    """Before anything is asked of a node. Raises InvalidQuery."""
    from streamkit.expressions.condition import Condition

    codec = {"auto": choice.codec, "hex": "bytes"}.get(choice.decode, choice.decode)
    return Condition(where, codec)


async def _tail(
    invocation: Invocation, stream: str, choice: Choice, shard_name: str | None, position: Position | None,
    count: int | None, live: bool, where: Condition | None = None,
) -> None:  # fmt: skip
    async with invocation.client() as client:
        description = await client.stream(stream, refresh=True)
        choice = replace(choice, codec=description.config.codec)
        where = None if where is None else _condition(where.text, choice)
        shards = _chosen(description, shard_name)
        tails = await asyncio.gather(*(_start(client, stream, shard, position, count or 0) for shard in shards))
        for tail in tails:
            tail.where = where
            tail.parents = [other for other in tails if other.shard.ordinal in tail.shard.parents]
        if count is None:
            async for record in merged(tails):
                if choice.until_ms is not None and arrival_ms(record) >= choice.until_ms:
                    break
                _show(invocation, choice, record)
        else:
            for record in await _last(tails, choice, count):
                _show(invocation, choice, record)
        if where is not None and where.undecided and not invocation.quiet:
            note(f"-- {where.undecided} records could not be judged by --where, and are not shown")
        if live:
            if sys.stderr.isatty():
                note(f"-- live · {len(shards)} shards · Ctrl-C stops")
            await _follow(invocation, choice, tails, children=shard_name is None)


def _chosen(description: StreamDescription, shard_name: str | None) -> list[Shard]:
    if shard_name is None:
        return list(description.shards)
    chosen = [shard for shard in description.shards if shard.id == shard_name]
    if not chosen:
        from streamkit.errors import ShardNotFound

        raise ShardNotFound(
            f'stream "{description.name}" has no shard {shard_name}',
            try_=f"streamkit stream describe {description.name}",
            shard=shard_name,
        )
    return chosen


async def _start(client: AsyncClient, stream: str, shard: Shard, position: Position | None, count: int) -> ShardTail:
    """Where this shard's history begins: the position, or `count` sequences before its end."""
    from streamkit.consumer.lineage import patiently
    from streamkit.model.position import LATEST

    wanted = LATEST if position is None else position
    resolved = await patiently(client, shard, lambda: client.resolve_position(shard, wanted))
    end = resolved.high_watermark
    begin = resolved.sequence if position is not None else max(resolved.log_start, end - count)
    return ShardTail(client, stream, shard, resolved.log_start, begin, end, closed=shard.end is not None)


async def merged(tails: list[ShardTail]) -> AsyncIterator[Record[Any]]:
    """Everything up to each shard's end, oldest arrival first; one buffered fetch a shard is held."""
    while True:
        heads = await asyncio.gather(*(tail.first() for tail in tails))
        open_tails = [(arrival_ms(head), i) for i, head in enumerate(heads) if head is not None]
        if not open_tails:
            return
        if len(open_tails) == 1:
            buffer = tails[open_tails[0][1]].buffer
            while buffer:
                yield buffer.popleft()
            continue
        # Take from the oldest shard for as long as it stays the oldest.
        (_, oldest), (bound, _) = sorted(open_tails)[:2]
        buffer = tails[oldest].buffer
        while buffer and arrival_ms(buffer[0]) <= bound:
            yield buffer.popleft()


async def _last(tails: list[ShardTail], choice: Choice, count: int) -> list[Record[Any]]:
    """The last `count` that are wanted; looks further back until they are found or history is over."""
    back = count
    kept: deque[Record[Any]] = deque(maxlen=count)
    while count:
        everything = all(tail.next_sequence <= tail.log_start for tail in tails)
        kept.clear()
        if tails and tails[0].where is not None:
            tails[0].where.undecided = 0      # what is looked at again is not counted again
        async for record in merged(tails):
            if choice.wants(record) and (choice.until_ms is None or arrival_ms(record) < choice.until_ms):
                kept.append(record)
        if everything or len(kept) == count:
            break
        # Control batches and other keys took places among those looked at.
        back *= 8
        for tail in tails:
            tail.next_sequence = max(tail.log_start, tail.end - back)
    return list(kept)


async def _fill(tail: ShardTail) -> None:
    """One long poll; while nobody serves the shard it is looked for, and the terminal is told once."""
    from streamkit.errors import StreamkitError, TimedOut, Unavailable
    from streamkit.runtime.backoff import Backoff

    backoff = Backoff(tail.client.runtime.random, 20, 1_000)
    while True:
        try:
            await tail.fill(wait_ms=FOLLOW_WAIT_MS)
        except (Unavailable, TimedOut) as error:
            if backoff.tries == _TRIES_QUIET and sys.stderr.isatty():
                note(f"-- {tail.shard.id}: {error}; waiting")
        else:
            return
        with suppress(StreamkitError):     # the fetch says what is wrong for good
            await tail.client.find_leader(tail.shard, tail.stream)
        await asyncio.sleep(backoff.next_ms() / 1000)


def arrival_ms(record: Record[Any]) -> int:
    """When the record's batch was appended; never falls within a shard."""
    return record.batch.append_time_ms


async def _follow(invocation: Invocation, choice: Choice, tails: list[ShardTail], *, children: bool) -> None:
    """children: go on with them where a shard ends."""
    from streamkit.consumer.lineage import Lineage, children_of

    by_ordinal = {tail.shard.ordinal: tail for tail in tails}
    lineage = Lineage(tail.shard for tail in tails)

    async def one(tail: ShardTail) -> None:
        while True:
            while tail.buffer:
                _show(invocation, choice, tail.buffer.popleft())
            sys.stdout.flush()
            if tail.closed and (tail.shard.end is None or tail.next_sequence >= tail.shard.end):
                break
            await _fill(tail)
        if not children:
            note(f"-- {tail.shard.id} was split or merged; nothing more arrives there")
        elif found := await children_of(tail.client, tail.stream, tail.shard):
            lineage.add(found)
            for shard in found:
                child = ShardTail(tail.client, tail.stream, shard, 0, 0, 0, where=tail.where)
                by_ordinal.setdefault(shard.ordinal, child)
        lineage.ended(tail.shard)
        begin()

    def begin() -> None:
        for shard in lineage.ready():
            group.create_task(one(by_ordinal[shard.ordinal]))

    try:
        async with asyncio.TaskGroup() as group:
            begin()
    except BaseExceptionGroup as failed:
        first: BaseException = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None                     # one reason is enough: the others are the same for another shard


def _show(invocation: Invocation, choice: Choice, record: Record[Any]) -> None:
    from streamkit.cli.decoding import one_line, shown

    if not choice.wants(record):
        return
    if choice.raw:
        data = record.data
        sys.stdout.buffer.write(struct.pack(">I", len(data)) + data if choice.length_prefixed else data + b"\n")
        return
    content_type = bytes(record.headers.get("content-type", b"")).decode("latin-1")
    read_as, value = shown(record.data, choice.decode, content_type, choice.codec)
    if invocation.json:
        emit(
            "record",
            {
                "stream": record.stream, "shard": record.shard, "sequence": record.sequence,
                "sequence_number": record.sequence_number, "key": record.key, "arrived": instant(arrival_ms(record)),
                "time": record.time.isoformat().replace("+00:00", "Z"), "decoded_as": read_as, "data": value,
                "headers": {name: bytes(v).decode("utf-8", "replace") for name, v in record.headers.items()},
            },
        )  # fmt: skip
    elif invocation.quiet:
        click.echo(record.sequence_number)
    else:
        click.echo(f"{clock(arrival_ms(record))}  {printable(record.key)}  {printable(one_line(value))}")
