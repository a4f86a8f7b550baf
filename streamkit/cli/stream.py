"""`streamkit stream`: create, list, describe, alter, reshard and delete streams."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Group, Invocation, common, pass_invocation
from streamkit.cli.rendering import count, duration, emit, instant, note, size, table
from streamkit.cli.times import parse_duration_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkit.client.client import AsyncClient
    from streamkit.client.operations import AsyncOperation, SplitAt
    from streamkit.model.shard import Shard
    from streamkit.model.stream import StreamDescription
    from streamkit.protocol.messages import ShardState

HOUR_MS = 3_600_000
_SHOW_S = 0.25                     # between two looks at how far a change is


@click.group(cls=Group, no_args_is_help=True)
def stream() -> None:
    """Create, list, describe, alter, split, merge, scale and delete streams."""


@stream.command()
@click.argument("name")
@click.option("--shards", default=1, show_default=True, help="Slices of the key space, each with its own log.")
@click.option("--retention", default="168h", show_default=True, metavar="TIME", help="How long records are kept.")
@click.option("--retention-bytes", type=int, default=None, help="Keep at most this much a shard (default: no bound).")
@click.option(
    "--durability", type=click.Choice(["fsync", "os", "leader"]), default="fsync", show_default=True,
    help="What an acknowledgement means: on disk, in the page cache, in memory.",
)
@click.option("--record-bytes-max", default=1_048_576, show_default=True, help="Largest record, with its key.")
@click.option(
    "--codec", type=click.Choice(["auto", "json", "msgpack", "text", "bytes"]), default="auto", show_default=True,
    help="How payloads are shown that do not say what they are.",
)
@common
@pass_invocation
def create(
    invocation: Invocation, name: str, shards: int, retention: str, retention_bytes: int | None, durability: str,
    record_bytes_max: int, codec: str,
) -> None:  # fmt: skip
    """Create a stream.

    Records with the same key land in the same shard and stay in order.
    """
    from streamkit.model.stream import Durability, StreamConfig, check_stream_name

    config = StreamConfig(
        shards=shards,
        retention_hours=_hours(retention),
        retention_bytes=retention_bytes,
        durability=Durability(durability),
        record_bytes_max=record_bytes_max,
        codec=codec,
    )
    check_stream_name(name)

    async def work() -> StreamDescription:
        async with invocation.client() as client:
            return await client.create_stream(name, config)

    made = invocation.run(work())
    if invocation.json:
        emit("stream", stream_facts(made))
    elif invocation.quiet:
        click.echo(made.name)
    else:
        shards_text = "1 shard" if shards == 1 else f"{count(shards)} shards"
        click.echo(f"created {made.name}   {shards_text}   retention {made.config.retention_hours} h   {durability}")


@stream.command("list")
@common
@pass_invocation
def list_streams(invocation: Invocation) -> None:
    """List the streams of the node, in the order of their names."""

    async def work() -> list[tuple[StreamDescription, tuple[ShardState, ...]]]:
        async with invocation.client() as client:
            streams = await client.list_streams()
            return [(s, await client.describe_shards(s.name)) for s in streams]

    found = invocation.run(work())
    if invocation.json:
        for description, states in found:
            emit("stream", {**stream_facts(description), "kept_bytes": sum(s.stored_bytes for s in states)})
    elif invocation.quiet:
        for description, _ in found:
            click.echo(description.name)
    else:
        table(
            ("STREAM", "SHARDS", "RECORDS", "RETENTION", "KEPT", "DURABILITY", "STATUS"),
            [
                (
                    d.name, count(d.config.shards), count(_records(states)), f"{d.config.retention_hours} h",
                    size(sum(s.stored_bytes for s in states)), d.config.durability.value, d.status.value,
                )
                for d, states in found
            ],
            right=("SHARDS", "RECORDS", "RETENTION", "KEPT"),
        )  # fmt: skip


@stream.command()
@click.argument("name")
@common
@pass_invocation
def describe(invocation: Invocation, name: str) -> None:
    """Show a stream's settings and each of its shards."""

    async def work() -> tuple[StreamDescription, tuple[ShardState, ...]]:
        async with invocation.client() as client:
            return await client.stream(name), await client.describe_shards(name)

    found, states = invocation.run(work())
    by_ordinal = {state.ordinal: state for state in states}
    if invocation.json:
        emit("stream", stream_facts(found, by_ordinal))
        return
    if invocation.quiet:
        for shard in found.shards:
            click.echo(shard.id)
        return
    config = found.config
    click.echo(
        f"{found.name}   {found.status.value}   on disk {size(sum(s.stored_bytes for s in states))}   "
        f"retention {config.retention_hours} h   {config.durability.value}   codec {config.codec}   "
        f"records up to {size(config.record_bytes_max)}"
    )
    rows = [_shard_row(shard, by_ordinal.get(shard.ordinal)) for shard in found.shards]
    table(
        (
            "SHARD", "RANGE (of 100 %)", "STATE", "PUT/s", "MB/s", "OLDEST", "NEXT", "KEPT", "LAST PUT", "EPOCH",
            "LEADER",
        ),
        rows,
        right=("PUT/s", "MB/s", "OLDEST", "NEXT", "KEPT", "EPOCH"),
    )


@stream.command()
@click.argument("name", metavar="STREAM")
@click.option("--retention-hours", type=int, default=None, metavar="HOURS", help="How long records are kept.")
@click.option(
    "--retention-bytes", default=None, metavar="BYTES", help='Keep at most this much a shard; "none": no bound.'
)
@click.option("--record-bytes-max", type=int, default=None, metavar="BYTES", help="Largest record, with its key.")
@common
@pass_invocation
def alter(
    invocation: Invocation, name: str, retention_hours: int | None, retention_bytes: str | None,
    record_bytes_max: int | None,
) -> None:  # fmt: skip
    """Change a stream's settings. What is not named stays as it is.

    Records that a shorter retention no longer keeps go within a minute or so. Producers that have begun keep the
    largest record they began with.
    """
    from streamkit.model.stream import UNCHANGED

    if retention_hours is None and retention_bytes is None and record_bytes_max is None:
        from streamkit.errors import InvalidUse

        raise InvalidUse(
            f"nothing is said that {name} should change", try_="streamkit stream alter --help", stream=name
        )
    kept_bytes = UNCHANGED if retention_bytes is None else _bytes_or_none(retention_bytes)

    async def work() -> StreamDescription:
        async with invocation.client() as client:
            return await client.alter_stream(
                name, retention_hours=retention_hours, retention_bytes=kept_bytes, record_bytes_max=record_bytes_max
            )

    changed = invocation.run(work())
    config = changed.config
    if invocation.json:
        emit("stream", stream_facts(changed))
    elif invocation.quiet:
        click.echo(changed.name)
    else:
        bound = "" if config.retention_bytes is None else f"   at most {size(config.retention_bytes)} a shard"
        shown = f"retention {config.retention_hours} h{bound}   records up to {size(config.record_bytes_max)}"
        click.echo(f"altered {changed.name}   {shown}")


_wait = click.option(
    "--wait/--no-wait", default=True, show_default=True,
    help="Show progress until it is done, or print the operation and leave.",
)  # fmt: skip


@stream.command()
@click.argument("name", metavar="STREAM")
@click.argument("shard")
@click.option(
    "--at", metavar="middle|traffic|HASH_KEY", default="middle", show_default=True,
    help="First hash key of the second half; traffic: where the bytes of the last ten minutes part into halves.",
)
@_wait
@common
@pass_invocation
def split(invocation: Invocation, name: str, shard: str, at: str, wait: bool) -> None:
    """Split a shard in two. Readers finish the parent before its children.

    SHARD is its id or its number. What it holds stays readable until the retention ends; from the split on its keys go
    to the children, each key in order.
    """
    from streamkit.model.shard import shard_ordinal

    ordinal, place = shard_ordinal(shard), _place(at)
    invocation.run(_change(invocation, name, wait, lambda client: client.split_shard(name, ordinal, place)))


@stream.command()
@click.argument("name", metavar="STREAM")
@click.argument("shards", nargs=-1, required=True, metavar="SHARD SHARD…")
@_wait
@common
@pass_invocation
def merge(invocation: Invocation, name: str, shards: tuple[str, ...], wait: bool) -> None:
    """Merge neighbouring shards into one. Readers finish the parents before their child.

    SHARD is an id or a number; streamkit stream describe shows which are neighbours.
    """
    from streamkit.model.shard import shard_ordinal

    ordinals = tuple(map(shard_ordinal, shards))
    invocation.run(_change(invocation, name, wait, lambda client: client.merge_shards(name, *ordinals)))


@stream.command()
@click.argument("name", metavar="STREAM")
@click.argument("shards", type=int, required=False)
@click.option("--shards", "wanted", type=int, default=None, metavar="SHARDS", help="The same as the argument.")
@_wait
@common
@pass_invocation
def scale(invocation: Invocation, name: str, shards: int | None, wanted: int | None, wait: bool) -> None:
    """Change the number of open shards. Readers finish closed shards before their children.

    SHARDS of nearly equal ranges are open afterwards; shards whose range stays the same stay open.
    """
    number = shards if wanted is None else wanted
    if number is None or (shards is not None and wanted is not None):
        raise click.UsageError("say once how many shards: streamkit stream scale STREAM SHARDS")
    invocation.run(_change(invocation, name, wait, lambda client: client.scale_stream(name, number)))


@stream.command()
@click.argument("operation", metavar="OPERATION")
@common
@pass_invocation
def wait(invocation: Invocation, operation: str) -> None:
    """Wait for a split, merge or scaling that is under way.

    OPERATION is what --no-wait printed.
    """
    name = operation.partition("/")[0]
    invocation.run(_change(invocation, name, True, lambda client: client.operation(operation)))


@stream.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
@pass_invocation
def delete(invocation: Invocation, name: str, yes: bool) -> None:
    """Delete a stream, its records and every application's position in it.

    Asks for the stream's name first; without a terminal it needs --yes.
    """

    async def held() -> tuple[ShardState, ...]:
        async with invocation.client() as client:
            return await client.describe_shards(name)

    async def drop() -> None:
        async with invocation.client() as client:
            await client.delete_stream(name)

    states = invocation.run(held())
    records, kept = _records(states), sum(s.stored_bytes for s in states)
    if not yes:
        if not sys.stdin.isatty():
            from streamkit.errors import InvalidUse

            raise InvalidUse(
                f"deleting {name} destroys {count(records)} records ({size(kept)}), and there is no terminal to ask",
                try_=f"streamkit stream delete {name} --yes",
                stream=name,
            )
        note(f"This deletes {count(records)} records ({size(kept)}) and the positions of every application in them.")
        if click.prompt("Type the stream's name to go on", err=True) != name:
            raise click.Abort
    invocation.run(drop())
    if invocation.json:
        emit("deleted", {"stream": name, "records": records, "kept_bytes": kept})
    else:
        click.echo(name if invocation.quiet else f"deleted {name}   {count(records)} records   {size(kept)}")


def _place(at: str) -> SplitAt:
    if at == "middle":
        return "middle"
    if at == "traffic":
        return "traffic"
    try:
        return int(at, 0)
    except ValueError:
        from streamkit.errors import InvalidUse

        raise InvalidUse(
            f"{at[:80]!r} is not a hash key", try_="give middle, traffic, or a whole number, 0 to 2**128 - 1",
            at=at[:80],
        ) from None


async def _change(
    invocation: Invocation, name: str, wait: bool, begin: Callable[[AsyncClient], AsyncOperation]
) -> None:
    async with invocation.client() as client:
        before = await client.stream(name)
        operation = begin(client)
        await operation.accepted()
        if operation.note and not invocation.json:
            note(operation.note)
        if not wait and operation.id:
            if invocation.json:
                emit("operation", {"id": operation.id, "stream": name, "note": operation.note})
            else:
                way = "" if invocation.quiet else f"{name}   under way: streamkit stream wait "
                click.echo(f"{way}{operation.id}")
            return
        _show_change(invocation, before, await _followed(operation, invocation))


async def _followed(operation: AsyncOperation, invocation: Invocation) -> StreamDescription:
    """What came of it; on a terminal with a line that shows how far it is."""
    from streamkit.errors import TimedOut

    shown = sys.stderr.isatty() and not invocation.json and not invocation.quiet
    while True:
        try:
            after = await operation.wait(_SHOW_S)
        except TimedOut:
            if operation.status == "failed":           # its own
                raise
            if shown:
                done = round(20 * operation.progress)
                click.echo(f"\r{'█' * done}{'░' * (20 - done)}  {operation.progress:4.0%}", err=True, nl=False)
        else:
            if shown:
                click.echo("\r" + " " * 28 + "\r", err=True, nl=False)
            return after


def _show_change(invocation: Invocation, before: StreamDescription, after: StreamDescription) -> None:
    """What a resharding did: which shards closed, which opened."""
    was_open = {shard.ordinal for shard in before.shards if shard.closed_ms is None}
    closed = [s.id for s in after.shards if s.closed_ms is not None and s.ordinal in was_open]
    opened = [s.id for s in after.shards if s.closed_ms is None and s.ordinal not in was_open]
    if invocation.json:
        shards = [_shard_facts(shard, None) for shard in after.shards]
        emit("stream", {**stream_facts(after), "shards": shards, "closed": closed, "opened": opened})
    elif invocation.quiet:
        for shard_id in opened:
            click.echo(shard_id)
    elif not opened:
        click.echo(f"{after.name}   {count(after.config.shards)} shards already, nothing to do")
    else:
        shown = f"closed {_some(closed)}   opened {_some(opened)}"
        click.echo(f"{after.name}   {shown}   {count(after.config.shards)} open")


def _some(shard_ids: list[str]) -> str:
    shown = ", ".join(shard_ids[:4])
    return shown if len(shard_ids) <= 4 else f"{shown} and {count(len(shard_ids) - 4)} more"


def stream_facts(description: StreamDescription, states: dict[int, ShardState] | None = None) -> dict[str, Any]:
    """What --json says about a stream; with the shards' states when they were asked for."""
    config = description.config
    facts: dict[str, Any] = {
        "name": description.name,
        "status": description.status.value,
        "shard_count": config.shards,
        "retention_hours": config.retention_hours,
        "retention_bytes": config.retention_bytes,
        "durability": config.durability.value,
        "record_bytes_max": config.record_bytes_max,
        "codec": config.codec,
        "created": instant(description.created_ms),
    }
    if states is not None:
        facts["shards"] = [_shard_facts(shard, states.get(shard.ordinal)) for shard in description.shards]
        facts["kept_bytes"] = sum(s.stored_bytes for s in states.values())
        facts["oldest"] = instant(min((s.first_append_ms for s in states.values() if s.first_append_ms), default=None))
    return facts


def _shard_facts(shard: Shard, state: ShardState | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": shard.id,
        "parents": list(shard.parents),
        "children": list(shard.children),
        "closed": instant(shard.closed_ms),
        "end": shard.end,
        "hash_range": {"start": str(shard.hash_start), "end": str(shard.hash_end)},
        "epoch": shard.epoch,
        "leader": shard.leader,
    }
    if state is not None:
        facts |= {
            "put_records_rate": state.put_records_rate,
            "put_bytes_rate": state.put_bytes_rate,
            "log_start": state.log_start,
            "high_watermark": state.high_watermark,
            "log_end": state.log_end,
            "kept_bytes": state.stored_bytes,
            "oldest": instant(state.first_append_ms),
            "newest": instant(state.last_append_ms),
        }
    return facts


def _shard_row(shard: Shard, state: ShardState | None) -> tuple[str, ...]:
    import time

    span = f"{shard.hash_start / 2**128:6.1%} – {shard.hash_end / 2**128:6.1%}".replace("%", "")
    if state is None:
        return (shard.id, span, _state(shard), *["–"] * 6, str(shard.epoch), shard.leader)
    last = "never" if state.last_append_ms is None else f"{duration(time.time() * 1000 - state.last_append_ms)} ago"
    return (
        shard.id, span, _state(shard), count(round(state.put_records_rate)), f"{state.put_bytes_rate / 1e6:.1f}",
        count(state.log_start), count(state.high_watermark), size(state.stored_bytes),
        last, str(shard.epoch), shard.leader,
    )  # fmt: skip


def _state(shard: Shard) -> str:
    return "open" if shard.closed_ms is None else f"closed, see {' '.join(map(str, shard.children))}"


def _records(states: tuple[ShardState, ...]) -> int:
    return sum(state.log_end - state.log_start for state in states)


def _bytes_or_none(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        from streamkit.errors import InvalidUse

        raise InvalidUse(
            f"{text[:80]!r} is not a number of bytes", try_='give a whole number, or "none" for no bound',
            retention_bytes=text[:80],
        )
    return int(text)


def _hours(retention: str) -> int:
    return int(retention) if retention.isdigit() else parse_duration_ms(retention) // HOUR_MS
