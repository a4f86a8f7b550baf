"""`streamkit lag`: how far applications are behind, for people and for checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, duration, emit, table
from streamkit.cli.times import parse_duration_ms

if TYPE_CHECKING:
    from streamkit.protocol.messages import ApplicationDescribed


@click.command()
@click.option("--app", "names", multiple=True, metavar="NAME", help="Only this application; may be repeated.")
@click.option("--fail-above", metavar="TIME", default=None, help="Exit 1 when any is further behind, such as 5m.")
@common
@pass_invocation
def lag(invocation: Invocation, names: tuple[str, ...], fail_above: str | None) -> None:
    """Show how far applications are behind.

    LAG is the age of the oldest unfinished record; RECORDS is how many are unfinished.
    """
    limit_ms = None if fail_above is None else parse_duration_ms(fail_above)

    async def work() -> list[ApplicationDescribed]:
        from streamkit.cli.application import describe_all

        async with invocation.client() as client:
            return await describe_all(client, names)

    rows = [row for described in invocation.run(work()) for row in _by_stream(described)]
    if invocation.json:
        for row in rows:
            emit("lag", row)
    elif limit_ms is None:
        table(
            ("APPLICATION", "STREAM", "LAG", "RECORDS", "WORKERS", "LEASES", "STATE"),
            [
                (
                    row["application"], row["stream"], duration(row["lag_seconds"] * 1000), count(row["lag_records"]),
                    str(row["workers"]), f"{row['leases_owned']}/{row['leases']}", row["state"],
                )
                for row in rows
            ],
            right=("LAG", "RECORDS", "WORKERS", "LEASES"),
        )  # fmt: skip
    if limit_ms is None:
        return
    late = [row for row in rows if row["lag_seconds"] * 1000 > limit_ms]
    for row in late if not invocation.json else ():
        behind = duration(row["lag_seconds"] * 1000)
        click.echo(f"{row['application']} is {behind} behind on {row['stream']} (limit {fail_above})")
    if late:
        raise click.exceptions.Exit(1)


def _by_stream(described: ApplicationDescribed) -> list[dict[str, Any]]:
    rows = []
    for stream in sorted({lease.stream for lease in described.leases}):
        leases = [lease for lease in described.leases if lease.stream == stream]
        owned = sum(1 for lease in leases if lease.owner)
        rows.append(
            {
                "application": described.application,
                "stream": stream,
                "lag_seconds": max(lease.lag_ms for lease in leases) / 1000,
                "lag_records": sum(lease.lag_records for lease in leases),
                "workers": len({lease.owner for lease in leases if lease.owner}),
                "leases_owned": owned,
                "leases": len(leases),
                "state": _state([lease.state for lease in leases], sum(lease.poisoned for lease in leases), owned),
            }
        )
    return rows


def _state(states: list[str], retrying: int, owned: int) -> str:
    if "paused" in states:
        return f"{states.count('paused')} paused"
    if retrying:
        return f"retrying {retrying} records"
    if not owned and any(state != "complete" for state in states):
        return "no workers"
    return "ok"
