"""The small programs of examples/consumers, run as a user runs them."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.processes import broker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with broker(tmp_path_factory.mktemp("node") / "data") as served:
        environment = {**os.environ, "STREAMKIT_URL": served.url, "STREAMKIT_STREAMS__AUTO_CREATE": "true"}
        from streamkit import Client

        with Client(served.url) as client:
            client.create_stream("orders", shards=1)
        done = subprocess.run([sys.executable, "-m", "examples.consumers.put"], cwd=ROOT, env=environment, timeout=30)
        assert done.returncode == 0
        yield environment


def lines(environment, count, name, *arguments):
    """The first lines it prints; then it is asked to stop, and does."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"examples.consumers.{name}", *arguments], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        seen = [process.stdout.readline() for _ in range(count)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return seen


def test_a_function_gets_what_its_annotation_says(environment):
    assert [line.split()[1] for line in lines(environment, 3, "function")] == ["0:", "1:", "2:"]


def test_a_processor_adds_up(environment):
    assert lines(environment, 1, "processor")[0].startswith("total 69.4 of shardId-")


def test_a_loop_over_batches(environment):
    assert [line.split()[1] for line in lines(environment, 3, "pull")] == ["0", "1", "2"]


def test_what_is_written_stays_written_once(environment, tmp_path):
    path = tmp_path / "bills.sqlite"
    assert lines(environment, 1, "exactly_once", str(path)) == ["wrote 3\n"]

    with sqlite3.connect(path) as database:
        assert database.execute("SELECT id FROM bills ORDER BY id").fetchall() == [(0,), (1,), (2,)]
        assert database.execute("SELECT application, next_sequence > 2 FROM streamkit_positions").fetchall() == [
            ("ledger", 1)
        ]
