"""`streamkit lag`: how far applications are behind, for people and for checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, duration, emit, size, table
from streamkit.cli.times import parse_duration_ms

if TYPE_CHECKING:
    from streamkit.client.lag import Lag, StreamLag

_BARS = "▁▂▃▄▅▆▇█"


@click.command()
@click.option("--app", "names", multiple=True, metavar="NAME", help="Only this application; may be repeated.")
@click.option("--fail-above", metavar="TIME", default=None, help="Exit 1 when any is further behind, such as 5m.")
@common
@pass_invocation
def lag(invocation: Invocation, names: tuple[str, ...], fail_above: str | None) -> None:
    """Show how far applications are behind.

    LAG is the age of the oldest unfinished record; RECORDS is how many are unfinished. TREND and RATE are of the last
    minute. TO TRIM is how long until retention removes an unfinished record, LOST how many it removed.
    """
    limit_ms = None if fail_above is None else parse_duration_ms(fail_above)

    async def work() -> list[Lag]:
        async with invocation.client() as client:
            return [await client.lag(name) for name in names or await client.list_applications()]

    rows = [row for found in invocation.run(work()) for row in found.streams]
    if invocation.json:
        for row in rows:
            emit("lag", _facts(row))
    elif limit_ms is None:
        table(
            ("APPLICATION", "STREAM", "LAG", "TREND", "RECORDS", "BYTES", "RATE in/out", "WORKERS", "LEASES", "TO TRIM",
             "LOST", "STATE"),
            [_cells(row) for row in rows],
            right=("LAG", "RECORDS", "BYTES", "RATE in/out", "WORKERS", "LEASES", "TO TRIM", "LOST"),
        )  # fmt: skip
    if limit_ms is None:
        return
    late = [row for row in rows if row.ms > limit_ms]
    for row in late if not invocation.json else ():
        click.echo(f"{row.application} is {duration(row.ms)} behind on {row.stream} (limit {fail_above})")
    if late:
        raise click.exceptions.Exit(1)


def _cells(row: StreamLag) -> tuple[str, ...]:
    return (
        row.application, row.stream, duration(row.ms), spark(row.trend_ms), count(row.records), size(row.bytes),
        f"{count(round(row.put_rate))} / {count(round(row.finished_rate))}", str(row.workers),
        f"{row.leases_owned}/{row.leases}", "–" if row.time_to_trim_ms is None else duration(row.time_to_trim_ms),
        count(row.records_lost), row.state,
    )  # fmt: skip


def spark(values: Sequence[int]) -> str:
    """One character a value, between nothing and the largest."""
    top = max(values, default=0)
    return "".join(_BARS[min(len(_BARS) - 1, value * len(_BARS) // top)] if top else _BARS[0] for value in values[-8:])


def _facts(row: StreamLag) -> dict[str, Any]:
    return {
        "application": row.application,
        "stream": row.stream,
        "lag_seconds": row.ms / 1000,
        "lag_records": row.records,
        "lag_bytes": row.bytes,
        "time_to_trim_seconds": None if row.time_to_trim_ms is None else row.time_to_trim_ms / 1000,
        "records_lost_to_retention": row.records_lost,
        "put_records_rate": row.put_rate,
        "finished_records_rate": row.finished_rate,
        "trend_seconds": [ms / 1000 for ms in row.trend_ms],
        "workers": row.workers,
        "leases_owned": row.leases_owned,
        "leases": row.leases,
        "state": row.state,
    }
