"""`streamkit consume`: a worker of an application from the shell, with a Python handler or another program."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import click

from streamkit._core.batch import Record
from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import emit, note
from streamkit.cli.times import parse_start

OUTPUT_LINE_BYTES_MAX = 64 * 1024


@click.command()
@click.argument("stream")
@click.argument("handler", required=False, metavar="[MODULE:FUNCTION]")
@click.option("--app", "application", required=True, metavar="NAME", help="The application to work for.")
@click.option("--from", "start", required=True, metavar="POSITION", help="Where a new application starts.")
@click.option("--exec", "command", metavar="COMMAND", help="A program: a JSON line a record in, ok or fail: WHY out.")
@click.option("--worker", default=None, help="This worker's name (default: made up).")
@click.option("--dead-letter", default=None, metavar="STREAM", help="Where records go that failed for the last time.")
@click.option(
    "--on-exhausted", type=click.Choice(["block", "dead_letter", "pause", "skip", "stop"]), default=None,
    help="What happens to them (default: dead_letter when named, else block).",
)
@click.option("--where", default=None, metavar="CONDITION", help="Only records that match, as \"data.total > 100\".")
@common
@pass_invocation
def consume(
    invocation: Invocation, stream: str, handler: str | None, application: str, start: str, command: str | None,
    worker: str | None, dead_letter: str | None, on_exhausted: str | None, where: str | None,
) -> None:  # fmt: skip
    """Run a handler for every record, as a worker of an application.

    Ctrl-C finishes what is under way, checkpoints and leaves. A record that fails is tried again and never skipped
    unless that was chosen.
    """
    if (handler is None) == (command is None):
        raise click.UsageError("name a handler, MODULE:FUNCTION, or a program with --exec")
    from datetime import UTC, datetime

    from streamkit.consumer.consumer import Consumer
    from streamkit.model.position import AtTime, Latest

    shard, position = parse_start(start)
    if shard is not None:
        raise click.UsageError("--from takes trim_horizon, latest or a time; one shard alone cannot be consumed")
    begin: str | datetime = "latest" if isinstance(position, Latest) else "trim_horizon"
    if isinstance(position, AtTime):
        begin = datetime.fromtimestamp(position.time_ms / 1000, UTC)
    program = None if command is None else Program(command)
    function = program.handle if program is not None else _load(handler or "")
    consumer = Consumer(
        stream, application=application, start=begin, dead_letter=dead_letter, worker=worker, where=where,
        url=invocation.url or None,
        on_exhausted=on_exhausted,  # type: ignore[arg-type]  # click gave one of these
    )  # fmt: skip
    consumer.handler(function)
    if not invocation.quiet:
        note(f"consuming {stream} as {application}   (Ctrl-C: finish, checkpoint, leave)")
    try:
        consumer.run()
    finally:
        if program is not None:
            program.close()
    if invocation.json:
        emit("consumed", {"stream": stream, "application": application})


def _load(name: str) -> Callable[..., Any]:
    """The function that `module:function` names, looked for in the current directory first. Raises InvalidUse."""
    from streamkit.errors import InvalidUse

    module, separator, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if not separator:
            raise AttributeError
        found: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as cause:
        reason = str(cause) if isinstance(cause, ImportError) else f"there is no function {name!r}"
        raise InvalidUse(reason, try_="write MODULE:FUNCTION, importable from here", handler=name) from cause
    return found


class Program:
    """Copies of a program, one for each shard, so that shards do not wait for one another.

    To its stdin goes a JSON line a record; back comes a line "ok" or "fail: why". A copy that ends, or answers with
    anything else, fails its record, and a new one is started for the next attempt.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._copies: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def handle(self, record: Record[bytes]) -> None:
        with self._lock:
            copy = self._copies.get(record.shard)
            if copy is None or copy.poll() is not None:
                copy = self._copies[record.shard] = subprocess.Popen(
                    self._command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
        assert copy.stdin is not None and copy.stdout is not None
        try:
            copy.stdin.write(_line(record))
            copy.stdin.flush()
            answer = copy.stdout.readline(OUTPUT_LINE_BYTES_MAX).strip()
        except BrokenPipeError:
            answer = b""
        if answer == b"ok":
            return
        if not answer.startswith(b"fail"):
            self._drop(record.shard, copy)
        why = answer.decode(errors="replace").removeprefix("fail:").strip() or "the program ended without an answer"
        raise RuntimeError(why)

    def _drop(self, shard: str, copy: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._copies.pop(shard, None)
        copy.kill()
        copy.wait()

    def close(self) -> None:
        for copy in self._copies.values():
            stdin: IO[bytes] | None = copy.stdin
            if stdin is not None:
                stdin.close()
            copy.wait(10)


def _line(record: Record[bytes]) -> bytes:
    import msgspec

    from streamkit.cli.decoding import shown

    content_type = bytes(record.headers.get("content-type", b"")).decode("latin-1")
    decoded_as, value = shown(record.data, "auto", content_type)
    return msgspec.json.encode(
        {
            "stream": record.stream, "shard": record.shard, "sequence_number": record.sequence_number,
            **({} if record.sub_sequence is None else {"sub_sequence": record.sub_sequence}),
            "key": record.key, "time": record.time, "decoded_as": decoded_as, "data": value,
        }
    ) + b"\n"  # fmt: skip
