"""`streamkit simulate`: whole clusters on a simulated world; a failing seed comes with the command that replays it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, emit, note

if TYPE_CHECKING:
    from streamkit.simulator.run import Report


@click.command()
@click.option("--seed", type=int, default=None, help="Replay this one, and show what happened when.")
@click.option("--seeds", type=click.IntRange(min=1), default=1_000, show_default=True, help="How many to run.")
@click.option("--first", type=int, default=0, show_default=True, help="The first of them.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Run this many at a time.")
@click.option("--alone", is_flag=True, help="One node without a cluster, in place of three to five.")
@click.option("--failures", default="build/failed_seeds.txt", show_default=True, help="Where seeds that fail are kept.")
@common
@pass_invocation
def simulate(
    invocation: Invocation, seed: int | None, seeds: int, first: int, processes: int, alone: bool, failures: str
) -> None:
    """Run whole clusters on a simulated world, one seed after the other.

    Clock, network, disks, the coordination store and randomness are simulated and go wrong: crashes, power losses,
    torn and lying disks, partitions, lost answers, moved shards. Exits 1 when a promise was broken, and prints the
    seed that shows it.
    """
    from streamkit.simulator.run import run, run_many

    if seed is not None:
        report = run(seed, alone=alone)
        _show_one(invocation, report)
        if report.violations:
            raise click.exceptions.Exit(1)
        return
    started = time.perf_counter()
    done = 0

    def told(report: Report) -> None:
        nonlocal done
        done += 1
        if report.violations:
            _show_one(invocation, report)
            _keep(failures, report)
        elif sys.stderr.isatty() and done % 100 == 0:
            note(f"{count(done)} of {count(seeds)} seeds   {done / (time.perf_counter() - started):.0f} a second")

    failed = run_many(first, seeds, processes=processes, on_report=told, alone=alone)
    seconds = time.perf_counter() - started
    if invocation.json:
        emit(
            "simulation",
            {"first": first, "seeds": seeds, "failed": [r.seed for r in failed], "seconds": round(seconds, 2)},
        )
    else:
        click.echo(
            f"{count(seeds)} seeds from {first}   {count(len(failed))} broke a promise   {seconds:.0f} s   "
            f"{seeds / seconds:.1f} seeds/s"
        )
    if failed:
        raise click.exceptions.Exit(1)


def _show_one(invocation: Invocation, report: Report) -> None:
    if invocation.json:
        emit("seed", _facts(report))
        return
    if not invocation.quiet:
        for line in report.log:
            click.echo(line)
    click.echo(str(report))


def _keep(path: str, report: Report) -> None:
    """One line for each: what replays it, and what went wrong."""
    kept = Path(path)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as file:
        file.write(f"{report.command}    # {report.violations[0][:200]}\n")


def _facts(report: Report) -> dict[str, Any]:
    return {
        "seed": report.seed, "violations": report.violations, "counts": report.counts, "digest": report.digest,
        "node_starts": report.node_starts, "faults": list(report.acts), "command": report.command,
        "nodes": report.nodes, "virtual_seconds": report.virtual_seconds, "seconds": round(report.seconds, 3),
    }  # fmt: skip
