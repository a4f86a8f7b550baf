"""A folder in which files appear whole or not at all, for several processes of one machine.

A file is written under another name, synced, and renamed; the folder is synced after that. `locked` keeps other
processes out meanwhile: the lock belongs to the process and goes with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_STAGED = ".staged"


class AtomicFolder:
    """path: made when it is missing, and on disk from then on."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        _make(self._path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else is inside `locked` of this folder."""
        with open(self._path / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self, name: str) -> bytes | None:
        """None: there is no such file."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Of whole files, sorted."""
        return sorted(entry.name for entry in self._path.iterdir() if not entry.name.startswith("."))

    def stage(self) -> BinaryIO:
        """A new file that nobody sees; give it to `publish` or `discard`."""
        return open(self._path / f".{os.getpid()}-{os.urandom(6).hex()}{_STAGED}", "xb")

    def publish(self, staged: BinaryIO, name: str) -> None:
        """On disk, and seen as `name`, when this returns; a file of that name is replaced."""
        staged.flush()
        os.fsync(staged.fileno())
        staged.close()
        Path(staged.name).rename(self._path / name)
        self._sync()

    def discard(self, staged: BinaryIO) -> None:
        staged.close()
        Path(staged.name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """The whole file, replaced at once."""
        staged = self.stage()
        try:
            staged.write(data)
            self.publish(staged, name)
        except BaseException:
            self.discard(staged)
            raise

    def remove(self, name: str) -> None:
        """Nothing happens when there is no such file."""
        (self._path / name).unlink(missing_ok=True)
        self._sync()

    def sweep(self) -> None:
        """Remove what processes that are gone left half written. Inside `locked`, by the only writer."""
        for entry in self._path.glob(f".*{_STAGED}"):
            entry.unlink(missing_ok=True)

    def _sync(self) -> None:
        _sync(self._path)


def _make(path: Path) -> None:
    if path.is_dir():
        return
    _make(path.parent)
    path.mkdir(exist_ok=True)              # others may make it, too
    _sync(path.parent)                     # where it is an entry


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
