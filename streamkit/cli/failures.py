"""How failures look: two lines on stderr, or one JSON object; and which exit code they mean.

    error: what could not be done, then why
    try:   a command or a setting that exists
"""

from __future__ import annotations

import logging
import sys
import traceback
import uuid
from typing import Any

import click

from streamkit.cli.catalogue import first_step
from streamkit.cli.invocation import Invocation
from streamkit.errors import InternalError, InvalidRequest, StreamkitError

log = logging.getLogger("streamkit.cli")


def report(error: Exception, invocation: Invocation) -> int:
    """Prints the failure and returns the exit code."""
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "streamkit"
        facts = {"code": "invalid_use", "message": _sentence(error.format_message()), "try": f"{path} --help"}
        return _print(facts, invocation, exit_code=2)
    if isinstance(error, click.ClickException):
        facts = {"code": "invalid_use", "message": _sentence(error.format_message()), "try": "streamkit --help"}
        return _print(facts, invocation, exit_code=1)
    if isinstance(error, OSError):
        error = _from_system(error)
    if not isinstance(error, StreamkitError):
        error = _defect(error)
    if invocation.debug:
        traceback.print_exception(error)
    exit_code = 2 if isinstance(error, InvalidRequest) else 1
    facts = {"code": error.code, "message": _sentence(str(error)), "try": error.try_ or first_step(error.code)}
    return _print(facts, invocation, exit_code=exit_code, facts=error.facts)


def _print(error: dict[str, Any], invocation: Invocation, *, exit_code: int, facts: Any = None) -> int:
    if invocation.json:
        import msgspec

        document = {"schema": "streamkit.error.v1", "error": {**error, "facts": facts or {}}}
        line = msgspec.json.encode(document, enc_hook=str).decode()
        click.echo(line, err=True)
        return exit_code
    red = ("\x1b[31m", "\x1b[0m") if invocation.colored and sys.stderr.isatty() else ("", "")
    click.echo(f"{red[0]}error:{red[1]} {error['message']}", err=True)
    click.echo(f"try:   {error['try']}", err=True)
    return exit_code


def _sentence(text: str) -> str:
    """One line in lower case without its full stop; a name such as "ValueError" keeps its capitals."""
    line = " ".join(text.split()).rstrip(".").replace(". Did you mean", "; did you mean")
    return line[:1].lower() + line[1:] if line[1:2].islower() and " " in line else line


def _from_system(error: OSError) -> StreamkitError:
    where = f"{error.filename}: " if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    refused = StreamkitError(f"{where}{reason}", try_=first_step("system"), errno=error.errno)
    refused.code = "system"
    return refused


def _defect(error: Exception) -> InternalError:
    incident = uuid.uuid4().hex[:8]
    log.error("cli.defect", exc_info=error, extra={"facts": {"incident": incident}})
    return InternalError(
        f"this is a defect in streamkit (incident {incident}): {type(error).__name__}: {error}",
        try_="run the same command with --debug and report what it prints",
        incident=incident,
    )
