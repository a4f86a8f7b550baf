"""Starting, watching and ending real processes: the node under test and the clients that load it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADDRESS_SPACE_BYTES_MAX = 8 << 30      # of a node; a leak ends it instead of the machine
START_SECONDS_MAX = 60
TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parents[2]


class CheckFailed(Exception):
    """A measurement's own answer was wrong: its figure must not be printed."""


def check(condition: bool, claim: str) -> None:
    if not condition:
        raise CheckFailed(claim)


@dataclass(slots=True)
class Node:
    """A running `streamkit serve`. ready_seconds: from exec to the line that says so."""

    process: subprocess.Popen[str]
    url: str
    directory: Path
    ready_seconds: float

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        """Of all processes that serve."""
        return [self.pid]

    def memory_mib(self, field: str = "VmHWM") -> float:
        """VmHWM is the most it ever used, VmRSS what it uses now; the sum over all processes that serve."""
        return sum(status_kib(pid, field) for pid in self.pids) / 1024

    def kill(self) -> None:
        """SIGKILL: what a crash of the process leaves behind."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(slots=True)
class Cluster(Node):
    """A running `streamkit serve --replicas 3`: `process` is the supervisor. node_pids: as they are now, by name."""

    node_pids: dict[str, int]

    @property
    def pids(self) -> list[int]:
        return [self.pid, *self.node_pids.values()]

    def kill_node(self, name: str) -> None:
        """SIGKILL. The supervisor starts it again; await_node() waits for that."""
        os.kill(self.node_pids[name], signal.SIGKILL)

    def await_node(self, name: str) -> None:
        """Until the supervisor announced the node's next life."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            said = json.loads(line)
            if said.get("node") == name and said["pid"] != self.node_pids[name]:
                self.node_pids[name] = said["pid"]
                return
        raise CheckFailed(f"{name} did not come back")


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise CheckFailed(f"/proc has no {field}")


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES_MAX, ADDRESS_SPACE_BYTES_MAX))


def start_node(directory: Path, **settings: str) -> Node:
    """Returns when it serves. Raises CheckFailed with what it printed when it does not.

    settings: STREAMKIT_… environment variables, without that prefix.
    """
    process, said, seconds = _start(directory, [], "node", settings)
    return Node(process, said["native"], directory, seconds)


def start_cluster(directory: Path, replicas: int, **settings: str) -> Cluster:
    """The same for as many nodes, each shard with a copy on each."""
    process, said, seconds = _start(directory, ["--replicas", str(replicas)], "cluster", settings)
    pids = {node["node"]: node["pid"] for node in said["nodes"]}
    return Cluster(process, said["native"], directory, seconds, pids)


def _start(
    directory: Path, options: list[str], announced: str, settings: dict[str, str]
) -> tuple[subprocess.Popen[str], dict[str, Any], float]:
    started = time.perf_counter()
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it outlives this function with the process that writes it
    process = subprocess.Popen(
        [sys.executable, "-m", "streamkit.cli", "serve", "--data", str(directory), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=_bound_memory, cwd=ROOT,
        env={**os.environ, **{f"STREAMKIT_{name}": value for name, value in settings.items()}},
    )  # fmt: skip
    assert process.stdout is not None
    watchdog_deadline = started + START_SECONDS_MAX
    while time.perf_counter() < watchdog_deadline:
        line = process.stdout.readline()
        if line.startswith(f'{{"schema":"streamkit.{announced}'):
            errors.close()
            return process, json.loads(line), time.perf_counter() - started
        if not line:
            break
    process.kill()
    process.wait()
    errors.seek(0)
    raise CheckFailed(f"the node did not start: {errors.read()[-2000:]}")


@contextlib.contextmanager
def cluster(replicas: int = 3, **settings: str) -> Iterator[Cluster]:
    """A cluster on a temporary directory, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="streamkit-bench-", ignore_cleanup_errors=True) as directory:
        running = start_cluster(Path(directory) / "data", replicas, **settings)
        try:
            yield running
        finally:
            running.stop()


def nodes(replicas: int, **settings: str) -> contextlib.AbstractContextManager[Node]:
    """A single node, or a cluster."""
    return cluster(replicas, **settings) if replicas > 1 else node(**settings)


@contextlib.contextmanager
def node(**settings: str) -> Iterator[Node]:
    """A node on a temporary directory, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="streamkit-bench-", ignore_cleanup_errors=True) as directory:
        running = start_node(Path(directory) / "data", **settings)
        try:
            yield running
        finally:
            running.stop()


def run_client(role: str, running: Node, *, timeout_seconds: float = 600, **options: Any) -> dict[str, Any]:
    """Runs benchmarks.paths.clients in a process of its own; its last line is the result."""
    request = json.dumps({"url": running.url, "server_pids": running.pids, **options})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.paths.clients", role, request],
        capture_output=True, text=True, timeout=timeout_seconds, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CheckFailed(f"{role}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
