"""What the process was told and what it is: environment variables, process id, host and user agent."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import sys


def variable(name: str) -> str | None:
    """An environment variable; None when it is unset or empty."""
    return os.environ.get(name) or None


def file_text(path: str) -> str:
    """A file that a user named, as UTF-8. Raises OSError, UnicodeDecodeError."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def process_id() -> int:
    return os.getpid()


def end_process() -> None:
    """This process is killed, with every thread that nothing else ends; what was written to its output is kept."""
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            output.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def host_name() -> str:
    return socket.gethostname()


def python_version() -> str:
    return platform.python_version()


def token(size: int) -> str:
    """That many random bytes in hexadecimal, so that two processes do not choose the same name."""
    return os.urandom(size).hex()
