"""`streamkit app reset skip export restore`: where an application goes on."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.application import application
from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, duration, emit, table
from streamkit.cli.times import parse_start
from streamkit.errors import InvalidUse

if TYPE_CHECKING:
    from streamkit.client.applications import PositionChange, ResetPlan

_STREAM = click.option("--stream", metavar="NAME", help="Only in this stream.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show what would come again.")


@application.command()
@click.argument("name")
@click.option("--to", metavar="POSITION", help="trim_horizon, latest, 2h, a time, or SHARD:SEQUENCE.")
@click.option("--shard", "shards", multiple=True, metavar="SHARD", help="Only this shard; may be repeated.")
@_STREAM
@click.option("--undo", is_flag=True, help="Back to the positions before the last reset, skip or restore; for 7 days.")
@_DRY_RUN
@common
@pass_invocation
def reset(
    invocation: Invocation, name: str, to: str | None, shards: tuple[str, ...], stream: str | None, undo: bool,
    dry_run: bool,
) -> None:
    """Go on at another position.

    Running workers are fenced and go on there by themselves. A time before a split is a position in the parents, which
    are read first.
    """
    if undo == (to is not None) or (undo and (dry_run or shards or stream)):
        raise InvalidUse("--to says where to go on, or --undo takes it back", try_=f"streamkit app reset {name} --undo")
    if to is None:
        _undo(invocation, name)
        return
    named, position = parse_start(to)
    only = (*shards, named) if named is not None else shards

    async def work() -> ResetPlan:
        async with invocation.client() as client:
            return await client.reset_application(name, position, shards=only, stream=stream, dry_run=dry_run)

    _show(invocation, invocation.run(work()), dry_run=dry_run)


def _undo(invocation: Invocation, name: str) -> None:
    async def work() -> None:
        async with invocation.client() as client:
            await client.undo_reset(name)

    invocation.run(work())
    if invocation.json:
        emit("undone", {"application": name})
    else:
        click.echo(name if invocation.quiet else f"{name} goes on where it was before the last reset")


@application.command()
@click.argument("name")
@click.option("--shard", required=True, metavar="SHARD", help="shardId-…, as describe shows it.")
@click.option("--to", type=int, metavar="SEQUENCE", help="First record to go on with (default: one is passed over).")
@_STREAM
@_DRY_RUN
@common
@pass_invocation
def skip(
    invocation: Invocation, name: str, shard: str, to: int | None, stream: str | None, dry_run: bool
) -> None:
    """Pass over records of a shard that cannot be handled; they stay in the stream."""

    async def work() -> ResetPlan:
        from streamkit.model.position import AtSequence
        from streamkit.model.shard import shard_id

        async with invocation.client() as client:
            leases = (await client.describe_application(name)).leases
            found = [each for each in leases if shard_id(each.ordinal) == shard and stream in (None, each.stream)]
            if len(found) != 1:
                raise InvalidUse(
                    f"{name} has {len(found)} shards {shard}", try_=f"streamkit app describe {name}; --stream NAME"
                )
            target = found[0].checkpoint + 1 if to is None else to
            if target < found[0].checkpoint:
                raise InvalidUse(f"{target} lies before the checkpoint, {found[0].checkpoint}",
                                 try_=f"streamkit app reset {name} --to {shard}:{target}")
            return await client.reset_application(
                name, AtSequence(target), shards=(shard,), stream=found[0].stream, dry_run=dry_run
            )

    _show(invocation, invocation.run(work()), dry_run=dry_run)


@application.command("export")
@click.argument("name")
@common
@pass_invocation
def export(invocation: Invocation, name: str) -> None:
    """Write an application's positions as JSON, for `app restore`."""

    async def work() -> dict[str, Any]:
        async with invocation.client() as client:
            return await client.export_positions(name)

    document: dict[str, Any] = invocation.run(work())
    click.echo(json.dumps(document, indent=None if invocation.json else 2))


@application.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@_DRY_RUN
@common
@pass_invocation
def restore(invocation: Invocation, name: str, file: str, dry_run: bool) -> None:
    """Go on where `app export` said, FILE or - for standard input."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text()
    try:
        document = json.loads(text)
    except ValueError as cause:
        raise InvalidUse(f"{file} is not JSON: {cause}", try_="streamkit app export NAME > positions.json") from cause
    if not isinstance(document, dict):
        raise InvalidUse(f"{file} is not a document of positions", try_="streamkit app export NAME > positions.json")

    async def work() -> ResetPlan:
        async with invocation.client() as client:
            return await client.import_positions(name, document, dry_run=dry_run)

    _show(invocation, invocation.run(work()), dry_run=dry_run)


def _show(invocation: Invocation, plan: ResetPlan, *, dry_run: bool) -> None:
    seconds = plan.seconds(int(time.time() * 1000))
    if invocation.json:
        for change in plan.changes:
            emit("position", _facts(change))
        emit("reset", {"application": plan.application, "again": plan.again, "skipped": plan.skipped,
                       "seconds": seconds, "dry_run": dry_run})
        return
    if invocation.quiet:
        click.echo(plan.application)
        return
    table(
        ("STREAM", "SHARD", "NOW", "THEN", "AGAIN", "SKIPPED"),
        [
            (
                change.stream, change.shard, _place(change.before, change.before_ms),
                _place(change.after, change.after_ms), count(change.again), count(change.skipped),
            )
            for change in plan.changes
        ],
        right=("AGAIN", "SKIPPED"),
    )  # fmt: skip
    click.echo(f"{count(plan.again)} records come again, {duration(seconds * 1000)} of them; "
               f"{count(plan.skipped)} are passed over")
    if dry_run:
        click.echo("nothing was changed; running workers would be fenced and go on there")
    else:
        click.echo(f"old positions are kept 7 days: streamkit app reset {plan.application} --undo")


def _place(sequence: int, arrived_ms: int | None) -> str:
    if arrived_ms is None:
        return f"end ({count(sequence)})"
    return f"{datetime.fromtimestamp(arrived_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ} ({count(sequence)})"


def _facts(change: PositionChange) -> dict[str, Any]:
    return {
        "stream": change.stream,
        "shard": change.shard,
        "before": change.before,
        "after": change.after,
        "before_ms": change.before_ms,
        "after_ms": change.after_ms,
        "again": change.again,
        "skipped": change.skipped,
    }
