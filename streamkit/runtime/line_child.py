"""A program that is spoken to in lines: one in, some out, and what it says on stderr is told line by line.

Blocking, for threads. Two threads of its own read what the program writes, so that neither side waits for the other's
full pipe. It is in a process group of its own: Ctrl-C reaches its parent alone, and the end of its input is its sign.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO

from streamkit.errors import TimedOut, Unavailable

_LINE_BYTES_MAX = 8 * 1024 * 1024
_TOLD_BYTES_MAX = 2_000


class LineChild:
    """One life of the program. `wanted` says which lines of its stdout `read` returns; it gets each, on another thread.

    Raises Unavailable when the program cannot be started.
    """

    def __init__(
        self, command: Sequence[str], *, wanted: Callable[[bytes], bool], on_error_line: Callable[[bytes], None]
    ) -> None:
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
            )
        except OSError as cause:
            raise Unavailable(
                f"{command[0] if command else 'nothing'} cannot be started: {(cause.strerror or str(cause)).lower()}",
                try_="check the command, its path, and that it may be executed", command=" ".join(command),
            ) from cause
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None, "asked for"
        self._stdin: IO[bytes] = process.stdin
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read, args=(process.stdout, wanted), daemon=True, name="streamkit-child-out"),
            threading.Thread(
                target=_tell, args=(process.stderr, on_error_line), daemon=True, name="streamkit-child-err"
            ),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def write(self, line: bytes) -> bool:
        """False: it does not take any more."""
        try:
            self._stdin.write(line)
            self._stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def read(self, timeout_s: float | None) -> bytes:
        """The next line that is wanted; b"" when there will be none. Raises TimedOut."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimedOut(
                f"no answer from process {self._process.pid} within {timeout_s:g} s", sent=True
            ) from None

    def close(self, seconds: float) -> int:
        """End its input, wait, then kill it; its exit code, below 0 for a signal."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = self.kill()
        for thread in self._threads:
            thread.join(1.0)               # a grandchild may hold the pipes open; what it writes later is nobody's
        return code

    def kill(self) -> int:
        """Now, with whatever it has started in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        return code

    def _read(self, stdout: IO[bytes], wanted: Callable[[bytes], bool]) -> None:
        with stdout:
            for line in iter(lambda: stdout.readline(_LINE_BYTES_MAX), b""):
                if wanted(line):
                    self._lines.put(line)
        self._lines.put(b"")


def _tell(stderr: IO[bytes], on_line: Callable[[bytes], None]) -> None:
    # A program that never ends a line is heard all the same, a piece at a time.
    with stderr:
        for line in iter(lambda: stderr.readline(_TOLD_BYTES_MAX), b""):
            on_line(line)
