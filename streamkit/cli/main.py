"""The entrance: the tree of commands, loaded lazily, and the one place where failures become exit codes.

    exit 0 done · 1 failed, or a check found something · 2 misuse · 130 interrupted

A closed pipe ends quietly with 0: `streamkit tail orders | head` is not a failure.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from streamkit.cli.invocation import Invocation, common

# name → (module, attribute, one line for the list). The line is the first of the command's own help; a test compares.
COMMANDS = {
    "serve": ("serve", "serve", "Run a node."),
    "stream": ("stream", "stream", "Create, list, describe, alter, split, merge, scale and delete streams."),
    "put": ("put", "put", "Write records from arguments, stdin or files."),
    "tail": ("tail", "tail", "Show records, the newest last; follow them live."),
    "consume": ("consume", "consume", "Run a handler for every record, as a worker of an application."),
    "lag": ("lag", "lag", "Show how far applications are behind."),
    "why": ("why", "why", "Say why an application is behind, and what to do."),
    "kcl": ("kcl", "kcl", "Run a KCL record processor, in any language, as a worker of an application."),
    "app": ("positions", "application", "List, describe, pause, reset and delete applications."),
    "cluster": ("cluster", "cluster", "Show a cluster's nodes, and move shards between them."),
    "segment": ("segment", "segment", "Read data files without a node."),
    "simulate": ("simulate", "simulate", "Run whole clusters on a simulated world, one seed after the other."),
    "bench": ("bench", "bench", "Measure puts, reads and end-to-end latency against a node."),
    "doctor": ("doctor", "doctor", "Check this machine, the configuration and the node."),
    "explain": ("explain", "explain", "Say what an error code means and what to do."),
    "config": ("configuration", "configuration", "Show, print and explain the configuration."),
    "version": ("version", "version", "Print the version."),
}


class PlainFormatter(click.HelpFormatter):
    """Headings in lower case, as everything else that is said."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix or "usage: ")

    def write_heading(self, heading: str) -> None:
        super().write_heading(heading.lower())


click.Context.formatter_class = PlainFormatter      # every command makes a context of its own


class PipeClosed(Exception):
    """Whoever read our output has gone. Click would turn the BrokenPipeError itself into exit code 1."""


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is called, and lists them without importing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"streamkit.cli.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as cause:
            raise PipeClosed from cause

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "COMMAND [ARGUMENTS]")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            suggestion = f'; did you mean "{near[0]}"?' if near else ""
            raise click.UsageError(f'there is no command "{args[0]}"{suggestion}', ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@common
@click.version_option(package_name="streamkit", message="streamkit %(version)s")
def root() -> None:
    """Ordered, replayable, durable streams you run yourself.

    The node that commands talk to: --url, else STREAMKIT_URL, else streamkit://127.0.0.1:7440.
    """


def main(args: list[str] | None = None) -> int:
    """Runs one command; returns its exit code and never raises."""
    arguments = sys.argv[1:] if args is None else args
    invocation = Invocation()
    try:
        code = root.main(arguments, prog_name="streamkit", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except (BrokenPipeError, PipeClosed):
        return _leave_quietly()
    except (KeyboardInterrupt, click.Abort):
        return 130
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.ctx.get_help() if asked.ctx else "")
        return 0
    except Exception as error:
        from streamkit.cli import failures

        # Misuse is found while options are read, maybe before --json was: look for it in the words themselves.
        invocation.json = invocation.json or "--json" in arguments
        return failures.report(error, invocation)
    return code if isinstance(code, int) else 0


def _leave_quietly() -> int:
    # Python flushes stdout once more at exit; give it something that takes the bytes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def load(name: str) -> Any:
    """The command object called `name`; for tests that compare its help with the list above."""
    return root.get_command(click.Context(root), name)
