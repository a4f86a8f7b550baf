"""A cluster of real processes: each node on ports and a directory of its own, killed for sure at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.end_to_end.processes import free_port

READY_SECONDS_MAX = 30.0


@dataclass(slots=True)
class Placing:
    """Where a node runs, when not plainly here. host: it listens there. command: goes before its own: `ip netns …`."""

    host: str = "127.0.0.1"
    command: tuple[str, ...] = ()


@dataclass(slots=True)
class ClusterNode:
    """`streamkit serve --node-id` on one directory and one pair of ports, however often it is started."""

    name: str
    data_dir: Path
    store_url: str
    placing: Placing = field(default_factory=Placing)
    environment: dict[str, str] = field(default_factory=dict)
    zone: str = ""
    port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    notes_dir: Path | None = None          # for its log and its first words; None: beside its data

    @property
    def url(self) -> str:
        return f"{self.placing.host}:{self.port}"

    @property
    def log(self) -> Path:
        return (self.notes_dir or self.data_dir.parent) / f"{self.name}-{self.data_dir.name}.log"

    @property
    def _said(self) -> Path:
        return self.log.with_suffix(".said")

    def start(self, **settings: object) -> None:
        """settings: by configuration key with two underscores for the dot, as cluster__protocol_max=1."""
        assert self.process is None, "one at a time"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMKIT_")}
        environment |= {
            "STREAMKIT_LISTEN__HEALTH__ENABLED": "false", "STREAMKIT_LISTEN__HTTP__ENABLED": "false",
            "STREAMKIT_STORAGE__FREE_BYTES_MIN": "0", "STREAMKIT_LOGS__FORMAT": "text",
            "STREAMKIT_CLUSTER__ZONE": self.zone, "STREAMKIT_LISTEN__ACCEPT_INSECURE": "true", **self.environment,
        }  # fmt: skip
        environment |= {f"STREAMKIT_{key.upper()}": str(value) for key, value in settings.items()}
        command = [
            *self.placing.command, sys.executable, "-m", "streamkit.cli", "serve", "--node-id", self.name,
            "--cluster", self.store_url, "--data", str(self.data_dir), "--listen", self.placing.host,
            "--port", str(self.port), "--peer-port", str(self.peer_port), "--json",
        ]  # fmt: skip
        with self.log.open("ab") as log, self._said.open("wb") as said:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def ready(self) -> dict[str, Any] | None:
        """What it said when it was ready; None: not yet."""
        line, end, _ = self._said.read_bytes().partition(b"\n") if self._said.exists() else (b"", b"", b"")
        return json.loads(line) if end else None

    def wait_ready(self) -> float:
        """The seconds that took. Fails with its log when it ended instead."""
        began = time.monotonic()
        while time.monotonic() - began < READY_SECONDS_MAX:
            if self.ready is not None:
                return time.monotonic() - began
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"{self.name} is not ready\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL, also of what its placing put around it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            self.kills += 1

    def pause(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM and wait; its exit code."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGTERM)
        code = self.process.wait(60)
        self.process = None
        return code

    def refused(self) -> str:
        """Wait until it ended by itself, and return what it said of that."""
        assert self.process is not None
        code = self.process.wait(READY_SECONDS_MAX)
        self.process = None
        assert code != 0, "it ended as if all were well"
        return self.log.read_text()

    def wipe(self) -> None:
        """The disk is gone, and a new one is there."""
        assert self.process is None
        shutil.rmtree(self.data_dir)


class Nodes:
    """Several nodes of one cluster, by name: a, b, c …"""

    def __init__(self, nodes: Sequence[ClusterNode]) -> None:
        self.by_name = {node.name: node for node in nodes}

    def __getitem__(self, name: str) -> ClusterNode:
        return self.by_name[name]

    def __iter__(self) -> Iterator[ClusterNode]:
        return iter(self.by_name.values())

    @property
    def url(self) -> str:
        """For clients: any that runs."""
        return next(node.url for node in self if node.process is not None)

    @property
    def kills(self) -> int:
        return sum(node.kills for node in self)

    def start(self, **settings: object) -> None:
        for node in self:
            node.start(**settings)
        for node in self:
            node.wait_ready()

    def kill(self) -> None:
        for node in self:
            node.kill()

    def run(self, *arguments: str) -> list[dict[str, Any]]:
        """A command against a node that runs; its JSON lines. Fails when the command does."""
        done = subprocess.run(
            [sys.executable, "-m", "streamkit.cli", *arguments, "--json", "--url", self.url], capture_output=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]


def sqlite_url(folder: Path) -> str:
    return f"sqlite://{folder / 'cluster.sqlite'}"


@contextlib.contextmanager
def nodes(
    folder: Path, store_url: str, names: str = "abc", *, start: bool = True,
    placing: Callable[[str], Placing] | None = None,
    environment: Mapping[str, str] | None = None, **settings: object,
) -> Iterator[Nodes]:  # fmt: skip
    """One node a letter of `names`, started and gone when the block ends."""
    made = Nodes(
        [
            ClusterNode(
                name, folder / name, store_url, placing=placing(name) if placing else Placing(),
                environment=dict(environment or {}),
            )
            for name in names
        ]
    )
    try:
        if start:
            made.start(**settings)
        yield made
    finally:
        made.kill()
