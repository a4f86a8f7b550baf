"""`streamkit config`: what a node would run with, where each value came from, and what a setting means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Group, Invocation, common, pass_invocation
from streamkit.cli.rendering import emit, table

if TYPE_CHECKING:
    from streamkit.config import Composed, Key


@click.group("config", cls=Group, no_args_is_help=True)
def configuration() -> None:
    """Show, print and explain the configuration."""


def load_configuration(path: str | None = None, flags: dict[str, object] | None = None) -> Composed:
    """File, environment and flags put together. Raises InvalidConfig."""
    from streamkit.config import load
    from streamkit.runtime.real_disk import RealDisk

    return load(RealDisk(), path=path, environment=dict(os.environ), flags=flags)


@configuration.command()
@click.option("--config", "path", metavar="FILE", help="This file instead of the first one found.")
@common
@pass_invocation
def show(invocation: Invocation, path: str | None) -> None:
    """Show every effective value and where it came from."""
    composed = load_configuration(path)
    settings = composed.settings.values()
    if invocation.json:
        for one in settings:
            emit("setting", {"key": one.key.name, "value": one.value, "source": one.source})
    else:
        table(("KEY", "VALUE", "FROM"), [(s.key.name, _text(s.value), s.source) for s in settings])


@configuration.command("default")
@common
@pass_invocation
def print_default(invocation: Invocation) -> None:
    """Print a configuration file with every key at its default."""
    from streamkit.config import KEYS, default_toml

    if invocation.json:
        emit("defaults", {"settings": {key.name: key.default for key in KEYS.values()}})
    else:
        click.echo(default_toml(), nl=False)


@configuration.command()
@click.argument("key")
@common
@pass_invocation
def explain(invocation: Invocation, key: str) -> None:
    """Say what a setting means, its range, default and environment variable; of a section, what its settings mean."""
    from streamkit.config import explain as explain_key
    from streamkit.config import keys_of

    section = keys_of(key)
    if section and not invocation.json:
        table(("KEY", "DEFAULT", "MEANS"), [(one.name, _text(one.default), one.what) for one in section])
        return
    if invocation.json:
        for one in section or [explain_key(key)]:
            emit("key", key_facts(one))
        return
    found = explain_key(key)
    click.echo(f"{found.name}   {found.what}\n")
    click.echo(f"default      {_text(found.default)}")
    if found.low is not None:
        click.echo(f"range        {found.low:g} to {found.high:g}")
    click.echo(f"environment  {found.environment}")
    click.echo("change       takes a restart")


def key_facts(key: Key) -> dict[str, Any]:
    """What --json says about a setting."""
    return {
        "key": key.name, "what": key.what, "default": key.default, "low": key.low, "high": key.high,
        "environment": key.environment,
    }  # fmt: skip


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) and not value else str(value)
