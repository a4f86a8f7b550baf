"""Foreign server processes: started with a memory bound, watched, ended by their process ids."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paths.processes import CheckFailed, cpu_seconds, status_kib

ADDRESS_SPACE_BYTES_MAX = 12 << 30      # of a process; runtimes that reserve more are bounded by their own flag
STOP_SECONDS_MAX = 20
_PARENT_DEATH_SIGNAL = 1                # prctl's number
_libc = ctypes.CDLL(None)


def free_ports(count: int) -> list[int]:
    """All different. Somebody else may take one before the server does; then the server does not start, and says so."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for task in _children_files(pid):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def _children_files(pid: int) -> list[Path]:
    try:
        return [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


def total_cpu_seconds(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):      # a helper process that has ended since
            total += cpu_seconds(pid)
    return total


def reset_peaks(pids: Sequence[int]) -> None:
    """VmHWM begins again at what is resident now."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pids: Sequence[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, CheckFailed):
            total += status_kib(pid, "VmHWM")
    return total / 1024


class Servers:
    """The processes of one system and what a client must know to reach them (`facts`, JSON)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = {}
        self._processes: list[tuple[subprocess.Popen[bytes], Path]] = []

    def run(
        self, command: Sequence[str | Path], *, environment: dict[str, str] | None = None, bounded: bool = True
    ) -> None:
        """bounded: False where the runtime reserves address space that it does not use, and has a flag of its own."""
        log = self.directory / f"server-{len(self._processes)}.log"

        def prepare() -> None:
            _libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)       # nothing outlives the suite
            if bounded:
                resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES_MAX, ADDRESS_SPACE_BYTES_MAX))

        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=self.directory, env={**os.environ, **(environment or {})}, preexec_fn=prepare,
            )  # fmt: skip
        self._processes.append((process, log))

    def wait(self, ready: Callable[[], bool], seconds_max: float = 60) -> None:
        """Until `ready` says so. Raises CheckFailed with the end of the log when a server ends or time is up."""
        deadline = time.monotonic() + seconds_max
        while time.monotonic() < deadline:
            for process, log in self._processes:
                if process.poll() is not None:
                    raise CheckFailed(f"server ended with {process.returncode}: {_end_of(log)}")
            with contextlib.suppress(OSError, ConnectionError):
                if ready():
                    return
            time.sleep(0.1)
        ends = " | ".join(_end_of(log) for _, log in self._processes)
        raise CheckFailed(f"not ready after {seconds_max:.0f} s: {ends}")

    def log(self, index: int = 0) -> str:
        return self._processes[index][1].read_text(errors="replace")

    def all_said(self, words: str) -> bool:
        return all(words in self.log(i) for i in range(len(self._processes)))

    @property
    def pids(self) -> list[int]:
        return [pid for process, _ in self._processes for pid in family(process.pid)]

    def stop(self) -> None:
        everyone = {pid: _born(pid) for pid in self.pids}
        for process, _ in self._processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for process, _ in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
                continue
            process.kill()
            process.wait()
        for pid, born in everyone.items():         # helpers that their server did not end
            if born and _born(pid) == born:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def _born(pid: int) -> str:
    """When the process was started, which tells it from a later one with its number; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-1500:]
