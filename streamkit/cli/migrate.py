"""`streamkit app import`: an application of the KCL goes on here, from the checkpoints in its lease table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, emit, note, table
from streamkit.cli.times import parse_start

if TYPE_CHECKING:
    from streamkit.compat.kcl_table import KclLease
    from streamkit.compat.migration import Plan

_SHOWN_CHARACTERS = 12


@click.command("import")
@click.argument("name")
@click.option(
    "--kcl-table", "source", metavar="FILE|URL", required=True,
    help="An exported lease table, or http://DYNAMODB-ENDPOINT/TABLE.",
)
@click.option("--stream", default=None, help="The stream that it is of, unless its leases say so.")
@click.option(
    "--from", "start", metavar="POSITION", default=None,
    help="For shards that the table does not know, and leases at AT_TIMESTAMP.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@common
@pass_invocation
def import_leases(
    invocation: Invocation, name: str, source: str, stream: str | None, start: str | None, dry_run: bool
) -> None:
    """Take an application over from the KCL: make it, with the checkpoints of the KCL's lease table.

    Stop the KCL's workers first. FILE is what `aws dynamodb scan --output json` prints, DynamoDB's export, or plain
    JSON. Nothing is changed when a shard cannot be mapped: sequence numbers must be those of this node's stream.
    """
    from streamkit.compat import migration

    leases = _leases(source)
    begin = _start(start) if start else None

    async def work() -> Plan:
        async with invocation.client() as client:
            made = await migration.plan(client, leases, stream=stream, start=begin)
            if not dry_run:
                await migration.carry_out(client, name, made)
            return made

    made = invocation.run(work())
    if invocation.json:
        emit("import", {"application": name, "done": not dry_run, "leases": list(_facts(made)),
                        "gone": list(made.gone), "owned": made.owned})  # fmt: skip
        return
    if invocation.quiet:
        click.echo(name)
        return
    table(
        ("STREAM", "SHARD", "CHECKPOINT", "GOES ON AT", "BEHIND"),
        [(row["stream"], row["shard"], _short(row["checkpoint"]), _place(row), count(row["behind"]))
         for row in _facts(made)],
        right=("GOES ON AT", "BEHIND"),
    )  # fmt: skip
    for shard in made.gone:
        note(f"{shard} was done, and is gone")
    if made.owned:
        note(f"warning: {made.owned} leases were held by workers of the KCL; stop those, or records are handled twice")
    note(f"nothing was changed; without --dry-run this makes {name}" if dry_run else f"imported {name}")


def _leases(source: str) -> tuple[KclLease, ...]:
    from streamkit.compat.kcl_table import leases_of, parse_table

    if source.startswith(("http://", "https://")):
        return leases_of(_scanned(source))
    return parse_table(Path(source).read_bytes())


def _scanned(url: str) -> Iterator[dict[str, Any]]:
    """Every item of the table. Raises InvalidUse, ConnectionFailed."""
    from streamkit.errors import ConnectionFailed, InvalidUse

    endpoint, _, name = url.rpartition("/")
    if not name or endpoint.endswith(("/", ":")):
        raise InvalidUse(f"{url!r} names no table", try_="write http://HOST:PORT/TABLE", url=url)
    try:
        import boto3
        import botocore.exceptions
    except ImportError as cause:
        raise InvalidUse(
            "reading a table over HTTP needs boto3", url=url,
            try_=f"pip install boto3, or: aws dynamodb scan --table-name {name} --output json > leases.json",
        ) from cause
    known = bool(os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE"))
    keys = {} if known else {"aws_access_key_id": "any", "aws_secret_access_key": "any"}     # streamkit asks for none
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1"
    dynamodb = boto3.client("dynamodb", endpoint_url=endpoint, region_name=region, **keys)
    try:
        for page in dynamodb.get_paginator("scan").paginate(TableName=name, ConsistentRead=True):
            yield from page["Items"]
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as cause:
        raise ConnectionFailed(
            f"the table {name} cannot be read at {endpoint}: {cause}", address=endpoint, sent=True,
            try_="check the address, the table's name (the KCL's applicationName) and AWS_DEFAULT_REGION",
        ) from cause


def _start(text: str) -> str | datetime:
    from streamkit.model.position import AtTime, Latest

    shard, position = parse_start(text)
    if shard is not None:
        raise click.UsageError("--from takes trim_horizon, latest or a time")
    if isinstance(position, AtTime):
        return datetime.fromtimestamp(position.time_ms / 1000, UTC)
    return "latest" if isinstance(position, Latest) else "trim_horizon"


def _facts(made: Plan) -> Iterator[dict[str, Any]]:
    for move in made.moves:
        yield {
            "stream": move.stream, "shard": move.shard.id, "checkpoint": move.checkpoint or None,
            "sequence": move.position, "sub_sequence": move.sub, "behind": move.ahead,
        }  # fmt: skip


def _short(checkpoint: str | None) -> str:
    if checkpoint is None:
        return "–"
    return checkpoint if len(checkpoint) <= _SHOWN_CHARACTERS else f"…{checkpoint[-_SHOWN_CHARACTERS:]}"


def _place(row: dict[str, Any]) -> str:
    return count(row["sequence"]) + (f"+{row['sub_sequence']}" if row["sub_sequence"] else "")
