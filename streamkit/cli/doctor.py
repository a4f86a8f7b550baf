"""`streamkit doctor`: what could go wrong on this machine, with this configuration, with that node; and the remedy."""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import emit, quantile, size

SYNC_TRIES = 30
SYNC_SLOW_MS = 20.0
OPEN_FILES_MIN = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """level: "ok", "warn" or "fail"; try_: what to do about the latter two."""

    level: str
    text: str
    try_: str = ""


@click.command()
@click.option("--config", "path", metavar="FILE", help="The configuration to check.")
@click.option("--data", "data_dir", metavar="DIR", help="The data directory to check.")
@click.option("--ready", is_flag=True, help="Only whether the node is ready: exit 0 or 1.")
@common
@pass_invocation
def doctor(invocation: Invocation, path: str | None, data_dir: str | None, ready: bool) -> None:
    """Check this machine, the configuration and the node.

    Exits 1 when something fails; warnings do not count.
    """
    checks: list[Callable[[], Finding]] = [
        _python, _kernels, lambda: _configuration(path), lambda: _directory(data_dir, path), _open_files,
        lambda: _node(invocation),
    ]  # fmt: skip
    findings = [check() for check in (checks[-1:] if ready else checks)]
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    for finding in findings:
        if invocation.json:
            emit("finding", {"level": finding.level, "text": finding.text, "try": finding.try_ or None})
        else:
            advice = f"          try: {finding.try_}" if finding.try_ else ""
            click.echo(f"{finding.level:<4}  {finding.text}{advice}")
    if not invocation.json and not ready:
        click.echo(f"{failed} failed, {warned} warning{'' if warned == 1 else 's'}")
    if failed:
        raise click.exceptions.Exit(1)


def _python() -> Finding:
    return Finding("ok", f"python {platform.python_version()}, uvloop {version_of('uvloop')}")


def _kernels() -> Finding:
    try:
        from streamkit._core.batch import crc32c
    except ImportError as error:
        return Finding("fail", f"the compiled core cannot be loaded: {error}", "make build")
    data = bytes(1 << 20)
    started = time.perf_counter()
    if crc32c(b"123456789") != 0xE3069283:
        return Finding("fail", "the compiled core computes a wrong CRC-32C", "make clean build")
    for _ in range(16):
        crc32c(data)
    rate = 16 * len(data) / (time.perf_counter() - started) / 1e9
    if rate < 1.5:
        return Finding("warn", f"CRC-32C runs at {rate:.1f} GB/s: without the processor's instruction", "")
    return Finding("ok", f"compiled core loaded, CRC-32C at {rate:.0f} GB/s")


def _configuration(path: str | None) -> Finding:
    from streamkit.cli.configuration import load_configuration
    from streamkit.errors import InvalidConfig

    try:
        composed = load_configuration(path)
    except InvalidConfig as error:
        return Finding("fail", f"configuration: {error}", error.try_)
    return Finding("ok", f"configuration {composed.file or 'is the default'}")


def _directory(data_dir: str | None, path: str | None) -> Finding:
    """Writable, with room, on a disk that syncs in reasonable time: measured with 4 KiB at a time."""
    from streamkit.cli.configuration import load_configuration
    from streamkit.errors import InvalidConfig

    if data_dir is None:
        try:
            data_dir = load_configuration(path).config.storage.data_dir or default_data_directory()
        except InvalidConfig:
            return Finding("warn", "data directory not checked: the configuration has an error", "--data DIR")
    place = Path(data_dir)
    while not place.exists():
        place = place.parent
    try:
        times = _sync_times_ms(place)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Finding("fail", f"data directory {data_dir}: {reason}", "choose another with --data")
    median = quantile(times, 0.5)
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    text = f"data directory {data_dir} writable, {size(free)} free, sync {median:.1f} ms at the median"
    if free < 2 << 30:
        return Finding("warn", text, "free some space: puts stop at storage.free_bytes_min")
    return Finding("warn" if median > SYNC_SLOW_MS else "ok", text, "a faster disk" if median > SYNC_SLOW_MS else "")


def _sync_times_ms(place: Path) -> list[float]:
    times = []
    with tempfile.TemporaryFile(dir=place) as file:
        os.pwrite(file.fileno(), bytes(4096 * SYNC_TRIES), 0)
        os.fdatasync(file.fileno())
        for i in range(SYNC_TRIES):
            started = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, i * 4096)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return sorted(times)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES_MIN:
        return Finding("warn", f"open files limit {soft}", "ulimit -n 65536, or LimitNOFILE= in the unit")
    return Finding("ok", f"open files limit {soft}")


def _node(invocation: Invocation) -> Finding:
    from streamkit.errors import ConnectionFailed, StreamkitError

    async def ask() -> Finding:
        async with invocation.client() as client:
            node = await client.describe_node()
        where = f"node {node.node} at {invocation.node_url}, version {node.version}"
        if not node.ready:
            return Finding("fail", f"{where}, not ready: {'; '.join(node.reasons)}", "wait, or read its log")
        return Finding("ok", f"{where}, ready: {node.streams} streams, {node.shards} shards")

    try:
        return invocation.run(ask())
    except ConnectionFailed as error:
        level = "fail" if invocation.url else "warn"
        return Finding(level, f"node: {error}", "streamkit serve --dev")
    except StreamkitError as error:
        return Finding("fail", f"node: {error}", error.try_)


def default_data_directory() -> str:
    """The user's own, as the XDG rules say."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"{base}/streamkit"
