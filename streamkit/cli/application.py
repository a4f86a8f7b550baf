"""`streamkit app`: list, describe, pause, resume and delete applications; where they go on is in `positions`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Group, Invocation, common, pass_invocation
from streamkit.cli.migrate import import_leases
from streamkit.cli.rendering import count, duration, emit, table

if TYPE_CHECKING:
    from streamkit.client.client import AsyncClient
    from streamkit.protocol.messages import ApplicationDescribed, LeaseState


@click.group("app", cls=Group, no_args_is_help=True)
def application() -> None:
    """List, describe, pause, reset and delete applications."""


application.add_command(import_leases)


async def describe_all(client: AsyncClient, names: tuple[str, ...] = ()) -> list[ApplicationDescribed]:
    """The named applications, or all of them. Raises ApplicationNotFound."""
    from streamkit.protocol.messages import (
        ApplicationDescribed,
        ApplicationsListed,
        DescribeApplication,
        ListApplications,
    )

    if not names:
        listed = await client.call(ListApplications())
        assert isinstance(listed, ApplicationsListed)
        names = listed.names
    found = []
    for name in names:
        answer = await client.call(DescribeApplication(name))
        assert isinstance(answer, ApplicationDescribed)
        found.append(answer)
    return found


@application.command("list")
@common
@pass_invocation
def list_applications(invocation: Invocation) -> None:
    """List the applications that ever joined, with their workers and leases."""

    async def work() -> list[ApplicationDescribed]:
        async with invocation.client() as client:
            return await describe_all(client)

    found = invocation.run(work())
    if invocation.json:
        for described in found:
            emit("application", _facts(described))
    elif invocation.quiet:
        for described in found:
            click.echo(described.application)
    else:
        table(
            ("APPLICATION", "STREAMS", "WORKERS", "LEASES", "LAG"),
            [
                (
                    d.application, ", ".join(sorted({lease.stream for lease in d.leases})), str(len(d.workers)),
                    f"{_owned(d)}/{len(d.leases)}", duration(max((lease.lag_ms for lease in d.leases), default=0)),
                )
                for d in found
            ],
            right=("WORKERS", "LEASES", "LAG"),
        )  # fmt: skip


@application.command()
@click.argument("name")
@common
@pass_invocation
def describe(invocation: Invocation, name: str) -> None:
    """Show an application's workers and the state of each lease."""

    async def work() -> list[ApplicationDescribed]:
        async with invocation.client() as client:
            return await describe_all(client, (name,))

    (found,) = invocation.run(work())
    if invocation.json:
        emit("application", _facts(found))
        return
    if not invocation.quiet:
        workers = ", ".join(found.workers) or "none"
        click.echo(f"{found.application}   workers {workers}   leases {_owned(found)}/{len(found.leases)}")
    from streamkit.model.shard import shard_id

    table(
        ("STREAM", "SHARD", "STATE", "OWNER", "EPOCH", "CHECKPOINT", "BEHIND", "LAG", "RETRYING"),
        [
            (
                lease.stream, shard_id(lease.ordinal), lease.state, lease.owner or "–", str(lease.lease_epoch),
                count(lease.checkpoint), count(lease.lag_records), duration(lease.lag_ms), str(lease.poisoned),
            )
            for lease in found.leases
        ],
        right=("EPOCH", "CHECKPOINT", "BEHIND", "LAG", "RETRYING"),
    )  # fmt: skip


@application.command()
@click.argument("name")
@common
@pass_invocation
def resume(invocation: Invocation, name: str) -> None:
    """Resume what `app pause` or a failure policy paused; each shard goes on at its checkpoint."""

    async def work() -> None:
        from streamkit.protocol.messages import ResumeLeases

        async with invocation.client() as client:
            await client.call(ResumeLeases(name))

    invocation.run(work())
    if invocation.json:
        emit("resumed", {"application": name})
    else:
        click.echo(name if invocation.quiet else f"resumed {name}")


@application.command()
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Shown by describe.")
@common
@pass_invocation
def pause(invocation: Invocation, name: str, reason: str) -> None:
    """Pause an application: its workers finish what is in hand, checkpoint, and wait."""

    async def work() -> None:
        async with invocation.client() as client:
            await client.pause_application(name, reason)

    invocation.run(work())
    if invocation.json:
        emit("paused", {"application": name})
    else:
        click.echo(name if invocation.quiet else f"paused {name}; to go on: streamkit app resume {name}")


@application.command()
@click.argument("name")
@common
@pass_invocation
def doctor(invocation: Invocation, name: str) -> None:
    """Check what the leases promise; exit 1 when something does not hold.

    Every open shard has a lease, the leases cover every hash key once, no shard is handed out before its parents are
    finished, and whoever owns one is a worker.
    """

    async def work() -> tuple[str, ...]:
        async with invocation.client() as client:
            return await client.check_application(name)

    problems = invocation.run(work())
    if invocation.json:
        emit("checked", {"application": name, "problems": list(problems)})
    elif problems:
        click.echo("\n".join(problems))
    elif not invocation.quiet:
        click.echo(f"{name}: all promises hold")
    if problems:
        raise click.exceptions.Exit(1)


@application.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
@pass_invocation
def delete(invocation: Invocation, name: str, yes: bool) -> None:
    """Delete an application's positions; records stay.

    Its workers must have ended. Asks for the application's name first; without a terminal it needs --yes.
    """

    async def work() -> None:
        async with invocation.client() as client:
            await client.delete_application(name)

    if not yes:
        if not sys.stdin.isatty():
            from streamkit.errors import InvalidUse

            raise InvalidUse(
                f"deleting {name} forgets its positions, and there is no terminal to ask",
                try_=f"streamkit app delete {name} --yes",
                application=name,
            )
        if click.prompt("This forgets its positions. Type the application's name to go on", err=True) != name:
            raise click.Abort
    invocation.run(work())
    if invocation.json:
        emit("deleted", {"application": name})
    else:
        click.echo(name if invocation.quiet else f"deleted {name}")


def _owned(described: ApplicationDescribed) -> int:
    return sum(1 for lease in described.leases if lease.owner)


def _facts(described: ApplicationDescribed) -> dict[str, Any]:
    return {
        "name": described.application,
        "workers": list(described.workers),
        "leases": [lease_facts(lease) for lease in described.leases],
    }


def lease_facts(lease: LeaseState) -> dict[str, Any]:
    """What --json says about a lease."""
    from streamkit.model.shard import shard_id

    return {
        "stream": lease.stream,
        "shard": shard_id(lease.ordinal),
        "state": lease.state,
        "owner": lease.owner or None,
        "lease_epoch": lease.lease_epoch,
        "checkpoint": lease.checkpoint,
        "high_watermark": lease.high_watermark,
        "lag_records": lease.lag_records,
        "lag_seconds": lease.lag_ms / 1000,
        "checkpoint_age_seconds": lease.checkpoint_age_ms / 1000,
        "takeovers_without_progress": lease.takeovers_without_progress,
        "records_retrying": lease.poisoned,
    }
