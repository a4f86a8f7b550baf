"""docs/libraries.md works as written: each of its programs runs on a node, those that go on for ever until Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamkit.client.sync import Client
from streamkit.producer.producer import Producer
from tests.cli.conftest import start_serve
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "libraries.md").read_text()
PROCESSOR = """
from streamkit.compat import kclpy

kclpy.install()
from amazon_kclpy import kcl


class MyProcessor(kcl.RecordProcessorBase):
    def initialize(self, shard_id):
        pass

    def process_records(self, records, checkpointer):
        checkpointer.checkpoint()

    def shutdown(self, checkpointer, reason):
        if reason == "TERMINATE":
            checkpointer.checkpoint()
"""


def programs() -> list[tuple[str, str]]:
    """(heading, program); tests of users' own are run by tests/testing."""
    found, heading, count = [], "", 0
    for part in re.findall(r"^## ([^\n]*)$|^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        heading, count = (part[0], 0) if part[0] else (heading, count + 1)
        if part[1] and "def test_" not in part[1]:
            found.append((f"{heading} {count}", part[1]))
    return found


PROGRAMS = programs()


@dataclass(frozen=True)
class Place:
    directory: Path
    url: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A development node with orders in it, and an application that was there; what the programs leave open, too."""
    directory = tmp_path_factory.mktemp("libraries")
    node = start_serve(directory / "data", "--dev")
    (directory / "my_application.py").write_text(PROCESSOR)
    (directory / "kpl.properties").write_text("RecordMaxBufferedTime = 50\n")
    (directory / "orders.csv").write_text("customer-1,7.5\ncustomer-2,8.0\n")
    with Producer("orders", url=node.url) as producer:
        for number in range(100):
            kind, customer = "refund" if number % 9 == 0 else "order", f"customer-{number}"
            order = {"id": number, "customer": customer, "total": 2.5 * number, "kind": kind, "items": []}
            producer.put(order, key=customer, headers={"tenant": "acme"})
    yield Place(directory, node.url)
    node.process.terminate()
    assert node.process.wait(30) == 0


@pytest.mark.parametrize("program", [text for _, text in PROGRAMS], ids=[name for name, _ in PROGRAMS])
def test_a_program_of_the_page_runs(place: Place, program: str) -> None:
    application = "".join(set(re.findall(r'application="(\w+)"', program)) if ".run()" in program else ())
    before = _owners(place, application)
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", program], cwd=place.directory, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "STREAMKIT_URL": place.url, "PYTHONPATH": f"{ROOT}{os.pathsep}{place.directory}"},
    )  # fmt: skip
    try:
        if application:
            until(lambda: process.poll() is not None or _owners(place, application) - before)
            process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints and "ResourceWarning" not in complaints, complaints


def _owners(place: Place, application: str) -> set[str]:
    """Who holds leases of it."""
    with Client(place.url) as client:
        if application not in client.list_applications():
            return set()
        return {lease.owner for lease in client.describe_application(application).leases if lease.owner}


def test_the_page_has_programs_and_closes_each_block() -> None:
    assert len(PROGRAMS) >= 12
    fences = [line for line in PAGE.splitlines() if line.startswith("```")]

    assert all(fence == "```" for fence in fences[1::2]), "a block is not closed"
    assert len(fences) % 2 == 0
