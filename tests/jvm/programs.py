"""The Java programs of examples/kinesis as processes, with bounded heaps, and what they left in a node."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.examples.nodes import EXAMPLES, JVM, KinesisNode, MissingClient, aws, environment, needed, run

# Flink on Java 17 looks into classes of Java's own.
_FLINK = ["--add-opens", "java.base/java.util=ALL-UNNAMED", "--add-opens", "java.base/java.lang=ALL-UNNAMED"]
JVM_PATIENCE = 300.0


def java(node: KinesisNode, project: str, program: str, *arguments: str, secure: bool = False) -> list[str]:
    """The command. The certificate of `node` is the only one that is trusted."""
    found = shutil.which("java")
    if found is None:
        raise MissingClient("java is missing: apt-get install openjdk-17-jdk-headless maven, as root")
    needed(JVM / project / "lib", "java")
    heap, opens = ("-Xmx1g", _FLINK) if project == "flink" else ("-Xmx256m", [])
    trust = _trust(node) if secure else []
    classes = f"{JVM / project / 'classes'}:{JVM / project / 'lib' / '*'}"
    return [found, heap, *opens, *trust, "-cp", classes, f"example.{program}", *arguments]


def _trust(node: KinesisNode) -> list[str]:
    store = node.folder / "trust"
    if not store.exists():
        run(["keytool", "-importcert", "-noprompt", "-alias", "node", "-file", str(node.certificate),
             "-keystore", str(store), "-storepass", "example"], os.environ)  # fmt: skip
    return [f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=example"]


def produce(node: KinesisNode, stream: str, *, records: int, first: int = 0) -> str:
    """The KPL's program, to its end."""
    arguments = ["--stream", stream, "--records", str(records), "--first", str(first), "--endpoint", node.https]
    return run(java(node, "kpl-java", "ProduceRecords", *arguments), environment(node), seconds=JVM_PATIENCE)


class Program:
    """One that runs beside the test: `printed` is what it has said so far."""

    def __init__(self, node: KinesisNode, name: str, command: list[str], *, secure: bool = False) -> None:
        self.log = node.folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(node, secure=secure), cwd=EXAMPLES, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = JVM_PATIENCE) -> str:
        """Until it ends with 0; what it printed."""
        code = self.process.wait(seconds)
        assert code == 0, f"it ended with {code}\n{self.printed[-4000:]}"
        return self.printed

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(node: KinesisNode, name: str, command: list[str], *, secure: bool = False) -> Iterator[Program]:
    program = Program(node, name, command, secure=secure)
    try:
        yield program
    finally:
        program.kill()


def eventually(holds: Callable[[], bool], what: str, *programs: Program, seconds: float = JVM_PATIENCE) -> None:
    """Looks again and again; fails with the last words of the programs."""
    deadline = time.monotonic() + seconds
    while not holds():
        said = "\n".join(f"-- {program.log.name}\n{program.printed[-3000:]}" for program in programs)
        assert time.monotonic() < deadline, f"{what} did not come to pass\n{said}"
        time.sleep(0.25)                       # between two looks at programs that say nothing by themselves


def rows(*outputs: Path) -> list[int]:
    """Of the records that workers noted, in their order; a line that a killed worker did not finish is no record."""
    lines = [line for output in outputs if output.exists() for line in output.read_text().split("\n")[:-1]]
    return [json.loads(line.split("\t", 3)[3])["row"] for line in lines if line.count("\t") == 3]


def shards(output: Path) -> set[str]:
    return {line.split("\t", 1)[0] for line in output.read_text().splitlines()} if output.exists() else set()


def keys(node: KinesisNode, application: str) -> set[str]:
    """Of the items in the KCL's table: leases, and what its workers know of one another; none before there is one."""
    if application not in aws(node, "dynamodb", "list-tables", "--query", "TableNames").split():
        return set()
    return set(aws(node, "dynamodb", "scan", "--table-name", application, "--query", "Items[].leaseKey.S").split())


def checkpoints(node: KinesisNode, application: str) -> dict[str, str]:
    """By shard, from the KCL's own table."""
    items = json.loads(aws(node, "dynamodb", "scan", "--table-name", application, "--output", "json"))["Items"]
    return {item["leaseKey"]["S"]: item["checkpoint"]["S"] for item in items if "checkpoint" in item}


def last_sequence_numbers(output: Path) -> dict[str, str]:
    """Of the records that were noted, by shard."""
    last: dict[str, str] = {}
    for line in output.read_text().splitlines():
        shard, sequence_number, _ = line.split("\t", 2)
        last[shard] = max(last.get(shard, ""), sequence_number, key=lambda text: int(text or "0"))
    return last
