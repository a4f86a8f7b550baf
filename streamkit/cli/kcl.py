"""`streamkit kcl`: the MultiLangDaemon's part, without a JVM: record processors of any language, a child each shard."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import emit, note
from streamkit.cli.times import parse_start

if TYPE_CHECKING:
    from datetime import datetime

    from streamkit.compat.properties import DaemonSettings


@click.command()
@click.option("--properties", "file", metavar="FILE", default=None, help="The MultiLangDaemon's properties file.")
@click.option("--stream", default=None, help="The stream (streamName, streamArn).")
@click.option("--app", "application", metavar="NAME", default=None, help="The application (applicationName).")
@click.option("--exec", "command", metavar="COMMAND", default=None, help="The record processor (executableName).")
@click.option(
    "--from", "start", metavar="POSITION", default=None,
    help="Where a new application starts (initialPositionInStream).",
)
@click.option("--worker", default=None, help="This worker's name (workerIdentifier; default: made up).")
@click.option(
    "--answer-timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", default=None,
    help="Longest wait for a child's answer (timeoutInSeconds; default: no bound).",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
    help="What is told on stderr (default: info).",
)
@common
@pass_invocation
def kcl(
    invocation: Invocation, file: str | None, stream: str | None, application: str | None, command: str | None,
    start: str | None, worker: str | None, timeout_s: float | None, log_level: str,
) -> None:  # fmt: skip
    """Run a KCL record processor, in any language, as a worker of an application.

    Each shard that this worker holds has a child process, which speaks the KCL's MultiLang protocol on its standard
    input and output. Options go before what the file says. A child that fails is started again, at its shard's last
    checkpoint; the other shards go on. Ctrl-C lets children checkpoint, and leaves.
    """
    from streamkit.compat.child import Children
    from streamkit.compat.properties import DaemonSettings
    from streamkit.consumer.worker import Worker

    settings = DaemonSettings() if file is None else _read(file)
    words = tuple(shlex.split(command)) if command else settings.command
    stream = stream or settings.stream
    application = application or settings.application
    begin = _start(start) if start else settings.start
    for value, option, key in (
        (stream, "--stream", "streamName"), (application, "--app", "applicationName"),
        (words, "--exec", "executableName"), (begin, "--from", "initialPositionInStream"),
    ):
        if not value:
            raise click.UsageError(f"say {option}, or {key} in the properties file")
    assert stream and application and words and begin, "said, or refused above"
    _tell(log_level, invocation)
    children = Children(words, timeout_s=timeout_s or settings.timeout_s, **_given(grace_s=settings.grace_s))
    running = Worker(
        stream, application=application, start=begin, processor=children.processor, checkpoint="manual",
        worker=worker or settings.worker, url=invocation.url or None, codec="bytes",
        **_given(
            membership_ms=settings.membership_ms, batch_records_max=settings.batch_records_max,
            leases_max=settings.leases_max,
        ),
    )  # fmt: skip
    if not invocation.quiet:
        note(f"processing {stream} as {application}   (Ctrl-C: children checkpoint, finish, leave)")
    children.running = running
    running.run()
    if invocation.json:
        emit("processed", {"stream": stream, "application": application, "records": running.statistics.records})


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _read(file: str) -> DaemonSettings:
    from streamkit.compat.properties import daemon_settings, parse_properties

    settings = daemon_settings(parse_properties(Path(file).read_text("utf-8")), file)
    if settings.unknown:
        note(f"warning: {file} says what means nothing here: {', '.join(settings.unknown)}")
    return settings


def _start(text: str) -> str | datetime:
    from datetime import UTC, datetime

    from streamkit.model.position import AtTime, Latest

    shard, position = parse_start(text)
    if shard is not None:
        raise click.UsageError("--from takes trim_horizon, latest or a time")
    if isinstance(position, AtTime):
        return datetime.fromtimestamp(position.time_ms / 1000, UTC)
    return "latest" if isinstance(position, Latest) else "trim_horizon"


def _tell(level: str, invocation: Invocation) -> None:
    from streamkit.observability.logs import handler

    log = logging.getLogger("streamkit")
    log.addHandler(handler(sys.stderr, format="json" if invocation.json else "text"))
    log.setLevel("WARNING" if invocation.quiet else level.upper())
