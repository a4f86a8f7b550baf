"""`streamkit why`: what keeps an application behind, with evidence and one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import duration, emit

if TYPE_CHECKING:
    from streamkit.client.why import Facts


@click.command()
@click.argument("application")
@common
@pass_invocation
def why(invocation: Invocation, application: str) -> None:
    """Say why an application is behind, and what to do.

    Looks for: no workers, a lease without owner, paused leases, one record tried again and again, throttled reads, a
    handler slower than its input, prefetch without room, a slow disk, clocks that differ.
    """

    async def work() -> Facts:
        async with invocation.client() as client:
            return await client.facts_about(application)

    from streamkit.client.why import explain

    facts = invocation.run(work())
    findings = explain(facts)
    if invocation.json:
        for finding in findings:
            emit("finding", {
                "application": application, "cause": finding.cause, "text": finding.text,
                "evidence": list(finding.evidence), "try": finding.try_,
            })  # fmt: skip
        return
    for stream in facts.lag.streams:
        click.echo(f"{application} is {duration(stream.ms)} behind on {stream.stream}: {stream.state}")
    for number, finding in enumerate(findings, 1):
        click.echo(f"  {number}. {finding.text}.")
        for line in finding.evidence:
            click.echo(f"     {line}")
        click.echo(f"     try: {finding.try_}")
    if not findings:
        click.echo("nothing that is known of it explains a lag")
