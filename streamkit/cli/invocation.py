"""What every command shares: --json, --quiet, --url, --timeout, --color, --debug, and how to reach the node.

The options are accepted before the noun and after the verb alike; the last one given wins.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from streamkit.client.client import AsyncClient

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

URL_DEFAULT = "streamkit://127.0.0.1:7440"


@dataclass(slots=True)
class Invocation:
    """One call of the program. timeout_seconds: None waits as long as the library does."""

    json: bool = False
    quiet: bool = False
    url: str = ""
    timeout_seconds: float | None = None
    color: str = "auto"
    debug: bool = False

    @property
    def node_url(self) -> str:
        return self.url or os.environ.get("STREAMKIT_URL", "") or URL_DEFAULT

    @property
    def colored(self) -> bool:
        if self.color != "auto":
            return self.color == "always"
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """A connected client; its errors name the address and what to try."""
        from streamkit.client.client import AsyncClient

        async with AsyncClient(self.url or None) as client:
            yield client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a command's coroutine within --timeout. Raises TimedOut."""
        return asyncio.run(self._bounded(work))

    async def _bounded(self, work: Coroutine[Any, Any, T]) -> T:
        if self.timeout_seconds is None:
            return await work
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await work
        except TimeoutError:
            from streamkit.errors import TimedOut

            raise TimedOut(
                f"no answer from {self.node_url} within {self.timeout_seconds:g} s",
                try_="raise --timeout, or see what the node does: streamkit doctor",
                timeout_ms=int(self.timeout_seconds * 1000),
                sent=True,
            ) from None


class Group(click.Group):
    """A group that lists its commands with the whole first sentence of each."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("commands"):
            formatter.write_dl([
                (name, (command.help or "").strip().split("\n\n")[0].partition(". ")[0].rstrip(".") + ".")
                for name, command in sorted(self.commands.items())
            ])  # fmt: skip


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(ctx.ensure_object(Invocation), name, value)

    return callback


_OPTIONS = (
    click.option("--debug", is_flag=True, help="Show the traceback of a failure.", callback=_remember("debug")),
    click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default=None, callback=_remember("color"),
        help="Colour output (default: auto; NO_COLOR is honoured).",
    ),
    click.option(
        "--timeout", "timeout_seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", default=None,
        help="Give up after this long.", callback=_remember("timeout_seconds"),
    ),
    click.option("--url", metavar="URL", default=None, help="The node to talk to.", callback=_remember("url")),
    click.option("-q", "--quiet", is_flag=True, help="Print identifiers only.", callback=_remember("quiet")),
    click.option("--json", is_flag=True, help="Print JSON, one object a line.", callback=_remember("json")),
)  # fmt: skip


def common(function: F) -> F:
    """Adds the shared options to a command or group; they land in the Invocation, not in its parameters."""
    for option in _OPTIONS:
        function = _hidden_value(option, function)
    return function


def _hidden_value(option: Callable[[F], F], function: F) -> F:
    decorated = option(function)
    parameters = decorated.params if isinstance(decorated, click.Command) else vars(decorated)["__click_params__"]
    parameters[-1].expose_value = False
    return decorated


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
