"""Child processes for these tests: started on free ports, killed for sure at the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

READY_SECONDS_MAX = 20.0
PORTS = (20_000, 32_000)


def free_port() -> int:
    """One that stays ours between two starts: below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def end_in_order() -> None:
    """For commands: SIGTERM, as `timeout` sends it, unwinds like Ctrl-C; processes and mounts are taken down."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Broker:
    """`streamkit serve` on one data directory and one port, however often it is started."""

    def __init__(self, data_dir: Path, health_port: int = 0) -> None:
        self.health_port = health_port
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"127.0.0.1:{self.port}"
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self) -> None:
        assert self.process is None, "one at a time"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMKIT_")}
        environment |= {
            "STREAMKIT_LISTEN__NATIVE__PORT": str(self.port),
            "STREAMKIT_LISTEN__HEALTH__ENABLED": "true" if self.health_port else "false",
            "STREAMKIT_LISTEN__HEALTH__PORT": str(self.health_port or 7445),
            "STREAMKIT_LISTEN__HTTP__ENABLED": "false",
            "STREAMKIT_STORAGE__DATA_DIR": str(self.data_dir),
            "STREAMKIT_STORAGE__FREE_BYTES_MIN": "0",
            "STREAMKIT_LOGS__FORMAT": "text",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamkit.cli", "serve"], env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip

    def wait_ready(self) -> float:
        """Until it takes connections; the seconds that took. Fails with its log when it ended instead."""
        began = time.monotonic()
        while time.monotonic() - began < READY_SECONDS_MAX:
            if self.process is not None and self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return time.monotonic() - began
            time.sleep(0.01)
        raise AssertionError(f"the broker is not ready\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.kills += 1

    def terminate(self) -> int:
        """SIGTERM and wait; its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(30)
        self.process = None
        return code


@contextlib.contextmanager
def broker(data_dir: Path, health_port: int = 0) -> Iterator[Broker]:
    """health_port: where it shows its metrics, 0 for nowhere."""
    served = Broker(data_dir, health_port)
    served.start()
    try:
        served.wait_ready()
        yield served
    finally:
        served.kill()


@contextlib.contextmanager
def child(module: str, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module arguments`; gone when the block ends, even if it was stopped."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
