"""`streamkit version`: what is installed, for bug reports."""

from __future__ import annotations

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import emit


@click.command()
@common
@pass_invocation
def version(invocation: Invocation) -> None:
    """Print the version."""
    import platform

    import streamkit

    if invocation.json:
        emit("version", {"version": streamkit.__version__, "python": platform.python_version()})
    else:
        click.echo(f"streamkit {streamkit.__version__}  python {platform.python_version()}")
