"""`streamkit explain CODE`: the page of the error catalogue that belongs to a code."""

from __future__ import annotations

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import emit, table


@click.command()
@click.argument("code", required=False)
@common
@pass_invocation
def explain(invocation: Invocation, code: str | None) -> None:
    """Say what an error code means and what to do.

    CODE is an error's code or its class: stream_not_found, StreamNotFound. Without it, lists all of them.
    """
    from streamkit.cli.catalogue import ENTRIES, Entry
    from streamkit.errors import BY_CODE, InvalidUse

    def meaning(of: str) -> str:
        text = BY_CODE[of].__doc__ if of in BY_CODE else "The operating system refused."
        return " ".join((text or "").split())

    def facts(of: str, entry: Entry) -> dict[str, object]:
        retryable = of in BY_CODE and BY_CODE[of].retryable
        return {
            "code": of, "meaning": meaning(of), "why": entry.why, "try": entry.step, "retryable": retryable,
            "example": entry.example,
        }  # fmt: skip

    if code is None:
        if invocation.json:
            for name, entry in ENTRIES.items():
                emit("explanation", facts(name, entry))
        else:
            table(("CODE", "MEANING"), [(name, meaning(name)) for name in ENTRIES])
        return
    code = next((of for of, kind in BY_CODE.items() if kind.__name__ == code), code)    # as tracebacks name it
    if code not in ENTRIES:
        from difflib import get_close_matches

        near = get_close_matches(code, ENTRIES, n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise InvalidUse(f"there is no error code {code}{suggestion}", try_="streamkit explain", code=code)
    entry = ENTRIES[code]
    if invocation.json:
        emit("explanation", facts(code, entry))
        return
    click.echo(f"{code}   {meaning(code)}\n")
    click.echo(f"why        {entry.why}")
    click.echo(f"try        {entry.step}")
    click.echo(f"retryable  {'yes' if code in BY_CODE and BY_CODE[code].retryable else 'no'}")
    click.echo(f"example    error: {entry.example}")
