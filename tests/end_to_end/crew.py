"""Two workers in processes of their own that are killed and stopped, too, and a checker of what they noted.

Every record of the stream is given to some worker at least once; within one lease in order, from the lease's position.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.end_to_end.history import History

_KIB_MAX = 4 << 20


class Crew:
    """ann and bob. `url`: any node's, or several."""

    def __init__(self, url: str, stream: str, folder: Path, history: History) -> None:
        self._url, self._stream, self._folder, self._history = url, stream, folder, history
        self._notes = folder / "worker.notes"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._read_bytes = 0
        self._last: dict[tuple[str, str], int] = {}            # (worker, shard) → the record given to it last
        self.given = [bytearray() for _ in history.shards]
        self.names = ("ann", "bob")

    def start(self, name: str) -> None:
        command = [
            "sh", "-c", f'ulimit -v {_KIB_MAX} && exec "$@"', "sh",
            sys.executable, "-m", "tests.end_to_end.worker_process", self._url, name, str(self._notes), self._stream,
        ]  # fmt: skip
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_all(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def look(self) -> None:
        """Read what they noted since."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                text = (self._folder / f"{name}.log").read_text()[-1000:]
                raise AssertionError(f"worker {name} ended with {process.returncode}\n{text}")
        if not self._notes.exists():
            return
        with self._notes.open("rb") as file:
            file.seek(self._read_bytes)
            while chunk := file.read(1 << 20):
                lines, end, _ = chunk.rpartition(b"\n")
                if not end:
                    break
                self._read_bytes += len(lines) + 1
                file.seek(self._read_bytes)
                for line in lines.split(b"\n"):
                    self._note(line.decode().split())

    def _note(self, words: list[str]) -> None:
        name, shard, what, *rest = words
        if what == "begins":
            self._last[name, shard] = int(rest[0]) - 1
        elif what.isdigit():
            given, sequence = self.given[int(shard.removeprefix("shardId-"))], int(what)
            last = self._last.get((name, shard), -1)
            if sequence <= last:
                self._history.note_wrong("reordered", f"{name} was given {sequence} of {shard} after {last}")
            self._last[name, shard] = sequence
            given.extend(bytes(max(0, sequence + 1 - len(given))))
            given[sequence] = 1

    async def finish(self, seconds: float) -> None:
        """Until every record was given to one of them; all were read back before, so they are known."""
        began = time.monotonic()
        while True:
            self.look()
            missing = [
                f"{shard}/{sequence}" for shard, sequence in self._history.records()
                if sequence >= len(self.given[shard]) or not self.given[shard][sequence]
            ]  # fmt: skip
            if not missing:
                return
            if time.monotonic() - began > seconds:
                self._history.note_wrong("lost", f"no worker was given {len(missing)} records: {missing[:10]}")
                return
            await asyncio.sleep(0.5)


@contextlib.contextmanager
def crew(url: str, stream: str, folder: Path, history: History) -> Iterator[Crew]:
    made = Crew(url, stream, folder, history)
    try:
        for name in made.names:
            made.start(name)
        yield made
    finally:
        made.kill_all()
