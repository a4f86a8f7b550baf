"""`streamkit put`: records from arguments, stdin or files; what fails comes back in a form that can be put again."""

from __future__ import annotations

import base64
import logging
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, emit, note, size

if TYPE_CHECKING:
    from streamkit.errors import StreamkitError
    from streamkit.producer.producer import Handle

UNPUT = b'{"schema":"streamkit.unput.v1"'
SHOWN_MAX = 20                  # with more records, a summary instead of a line each
TIMEOUT_SECONDS = 30            # a person waits: less than what a program's Producer allows


@dataclass(frozen=True, slots=True)
class Entry:
    data: bytes
    key: str


@dataclass(slots=True)
class Tally:
    """Handles under way, oldest first, and what became of the others.

    failures: where what fails is written; None: nowhere, for whoever typed the one record has it.
    """

    invocation: Invocation
    failures: IO[bytes] | None
    show: bool
    pending: deque[tuple[Entry, Handle]]
    records: int = 0
    data_bytes: int = 0
    failed: int = 0
    first_failure: StreamkitError | None = None

    def add(self, entry: Entry, handle: Handle) -> None:
        self.pending.append((entry, handle))
        while self.pending and self.pending[0][1].done():
            self.settle()

    def settle(self) -> None:
        """Waits for the oldest."""
        from streamkit.errors import StreamkitError

        entry, handle = self.pending.popleft()
        try:
            result = handle.result()
        except StreamkitError as error:
            self.fail(entry, error)
            return
        self.records += 1
        self.data_bytes += len(entry.data)
        if self.show and self.invocation.json:
            emit(
                "put",
                {
                    "stream": result.stream, "shard": result.shard, "sequence_number": result.sequence_number,
                    "arrived": result.arrived.isoformat().replace("+00:00", "Z"), "duplicate": result.duplicate,
                    "epoch": result.epoch, "replicas": result.replicas, "synced": result.synced,
                },
            )  # fmt: skip
        elif self.show:
            click.echo(result.sequence_number if self.invocation.quiet else f"{result.shard}  {result.sequence_number}")

    def fail(self, entry: Entry, error: StreamkitError) -> None:
        import msgspec

        self.failed += 1
        self.first_failure = self.first_failure or error
        if self.failures is None:
            return
        try:
            payload = {"data": entry.data.decode()}
        except UnicodeDecodeError:
            payload = {"base64": base64.b64encode(entry.data).decode()}
        again = {"schema": "streamkit.unput.v1", "key": entry.key, **payload, "code": error.code, "error": str(error)}
        self.failures.write(msgspec.json.encode(again) + b"\n")
        self.failures.flush()


@click.command()
@click.argument("stream")
@click.argument("values", nargs=-1, metavar="[VALUE]...")
@click.option("--key", help="Partition key: records with the same key stay in order (default: one at random each).")
@click.option("--key-from", metavar="PATH", help="Take the key from each JSON value, such as data.customer or id.")
@click.option("--lines", is_flag=True, help="Each line of the input is a record.")
@click.option("--file", "files", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Read this file.")
@click.option(
    "--codec", type=click.Choice(["json", "text", "bytes", "msgpack"]), default=None,
    help="What the payload is (default: json when it is JSON, else text, else bytes).",
)
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Add a header; may be repeated.")
@click.option("--failures", type=click.Path(dir_okay=False), help="Write what fails here (default: stderr).")
@common
@pass_invocation
def put(
    invocation: Invocation, stream: str, values: tuple[str, ...], key: str | None, key_from: str | None, lines: bool,
    files: tuple[str, ...], codec: str | None, headers: tuple[str, ...], failures: str | None,
) -> None:  # fmt: skip
    """Write records from arguments, stdin or files.

    Each VALUE is a record; without one, each --file or all of stdin is, or with --lines each line of them. What fails
    is written as JSON lines that `put --lines` takes again; then the exit code is 1.
    """
    if key is not None and key_from is not None:
        raise click.UsageError("--key and --key-from exclude each other")
    if not values and not files and sys.stdin.isatty():
        raise click.UsageError("there is nothing to put: no VALUE, no --file, and stdin is a terminal")
    from streamkit.errors import InvalidRequest, PutFailed
    from streamkit.producer.producer import Producer

    logging.getLogger("streamkit.producer").addHandler(logging.NullHandler())     # each failure is reported here
    timeout_ms = int(1000 * (invocation.timeout_seconds or TIMEOUT_SECONDS))
    named = _headers(headers)
    started = time.perf_counter()
    with ExitStack() as stack:
        report: IO[bytes] | None = stack.enter_context(open(failures, "ab")) if failures else sys.stderr.buffer
        if failures is None and not lines and len(values) + len(files) == 1:
            report = None
        tally = Tally(invocation, report, not lines and len(values) + len(files) <= SHOWN_MAX, deque())
        url = invocation.url or None
        producer = stack.enter_context(Producer(url=url, stream=stream, delivery_timeout_ms=timeout_ms))
        by_codec: dict[str, Any] = {}
        for payload in _payloads(values, files, lines):
            entry = _entry(payload, key, key_from)
            chosen = codec or _guess(entry.data)
            if chosen not in by_codec:
                content_type = {} if chosen == "json" else {"content-type": chosen}
                by_codec[chosen] = {**content_type, **named} or None
            try:
                handle = producer.put(entry.data, key=entry.key, headers=by_codec[chosen])
            except InvalidRequest as error:
                tally.fail(entry, error)       # this record alone; the others go on
                continue
            tally.add(entry, handle)
        with suppress(PutFailed):                  # the handles say which, and why
            producer.flush()
        while tally.pending:
            tally.settle()
    seconds = time.perf_counter() - started
    if not tally.show:
        _summarise(invocation, tally, seconds)
    if tally.failed:
        assert tally.first_failure is not None
        if tally.show:
            raise tally.first_failure
        raise click.exceptions.Exit(1)


def _summarise(invocation: Invocation, tally: Tally, seconds: float) -> None:
    rate = tally.records / seconds if seconds else 0.0
    if invocation.json:
        emit(
            "put_summary",
            {
                "records": tally.records, "bytes": tally.data_bytes, "seconds": round(seconds, 3),
                "failed": tally.failed, "records_per_second": round(rate),
            },
        )  # fmt: skip
        return
    note(
        f"put {count(tally.records)} records ({size(tally.data_bytes)}) in {seconds:.1f} s   "
        f"{count(tally.failed)} failed   {count(round(rate))} rec/s"
    )
    if tally.first_failure is not None:
        note(f"first failure: {tally.first_failure}")


def _payloads(values: tuple[str, ...], files: tuple[str, ...], lines: bool) -> Iterator[bytes]:
    for value in values:
        yield value.encode("utf-8", "surrogateescape")
    if values and not files:
        return
    with ExitStack() as stack:
        sources: list[IO[bytes]] = [stack.enter_context(open(name, "rb")) for name in files] or [sys.stdin.buffer]
        for source in sources:
            if not lines:
                yield source.read()
                continue
            for line in source:
                if stripped := line.rstrip(b"\r\n"):
                    yield stripped


def _entry(payload: bytes, key: str | None, key_from: str | None) -> Entry:
    import msgspec

    if payload.startswith(UNPUT):
        again = msgspec.json.decode(payload)
        data = base64.b64decode(again["base64"]) if "base64" in again else again["data"].encode()
        return Entry(data, again["key"])
    if key is not None:
        return Entry(payload, key)
    if key_from is not None:
        return Entry(payload, _key_of(payload, key_from))
    return Entry(payload, f"{random.getrandbits(64):016x}")


def _key_of(payload: bytes, path: str) -> str:
    """The text or number at `path` of a JSON value; a leading "data." means the value itself. Raises InvalidUse."""
    import msgspec

    from streamkit.errors import InvalidUse

    try:
        found = msgspec.json.decode(payload)
        for name in path.removeprefix("data.").split("."):
            found = found[int(name)] if isinstance(found, list) else found[name]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError):
        raise InvalidUse(
            f"a record has no {path}, or is not JSON",
            try_="name a field that every record has, or give one --key",
            path=path,
        ) from None
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()


def _guess(data: bytes) -> str:
    import msgspec

    try:
        msgspec.json.decode(data)
        return "json"
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        data.decode()
        return "text"
    except UnicodeDecodeError:
        return "bytes"


def _headers(given: tuple[str, ...]) -> dict[str, str | bytes]:
    named: dict[str, str | bytes] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--header takes NAME=VALUE, not {text!r}")
        named[name] = value
    return named
