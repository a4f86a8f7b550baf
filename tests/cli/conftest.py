"""A real node process for the commands to talk to."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that; the tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class ServedNode:
    process: subprocess.Popen[str]
    url: str
    health: str
    directory: Path
    log: Path

    def run(self, *arguments: str, stdin: str | bytes = b"", exit_code: int = 0) -> str:
        """What the command printed on stdout; its exit code must be the one given."""
        done = run_command(*arguments, "--url", self.url, stdin=stdin)
        assert done.returncode == exit_code, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *arguments: str, stdin: str | bytes = b"", exit_code: int = 0) -> list[dict]:
        """The JSON lines it printed; each says its schema first."""
        printed = self.run(*arguments, "--json", stdin=stdin, exit_code=exit_code)
        lines = [json.loads(line) for line in printed.splitlines()]
        assert all(next(iter(line)) == "schema" for line in lines)
        return lines

    def fail(self, *arguments: str, stdin: str | bytes = b"", exit_code: int = 1) -> list[str]:
        """What it printed on stderr; two lines."""
        done = run_command(*arguments, "--url", self.url, stdin=stdin)
        assert done.returncode == exit_code, done.stdout.decode() + done.stderr.decode()
        return done.stderr.decode().splitlines()


def run_command(*arguments: str, stdin: str | bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "streamkit.cli", *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin, capture_output=True, timeout=timeout, check=False,
    )  # fmt: skip


def start_serve(directory: Path, *arguments: str) -> ServedNode:
    log = directory.with_suffix(".log")
    with log.open("ab") as errors:
        command = [sys.executable, "-m", "streamkit.cli", "serve", "--data", str(directory), "--port", "0", "--json"]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    facts = json.loads(line)
    return ServedNode(process, facts["native"], facts["health"], directory, log)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedNode]:
    """One node for all tests of the commands; each test has streams of its own."""
    node = start_serve(tmp_path_factory.mktemp("served") / "data")
    yield node
    node.process.terminate()
    assert node.process.wait(30) == 0, node.log.read_text()
