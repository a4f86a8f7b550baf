"""Positions beside files: what a transaction wrote appears as one file, whole or not at all.

    FOLDER/APPLICATION/STREAM/SHARD-UUID/.position                who claimed the shard last, and how far it came
    FOLDER/APPLICATION/STREAM/SHARD-UUID/START-END.SUFFIX         what records START to END (exclusive) were written as

A transaction renames its file into place and then writes `.position`. When the process dies between the two, the next
claim finds a file that begins where the position is, and moves the position to its end.
"""

from __future__ import annotations

import errno
import re
from typing import BinaryIO

import msgspec

from streamkit.consumer.aggregates import Place
from streamkit.consumer.exactly_once import Awaited, Claim
from streamkit.errors import InvalidUse
from streamkit.runtime.atomic_files import AtomicFolder

_POSITION = ".position"
_DIGITS = 20
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_FILE = re.compile(r"(\d{20})(?:\.(\d+))?-(\d{20})(?:\.(\d+))?\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class _Position(msgspec.Struct):
    application_ms: int
    lease_epoch: int
    sequence: int
    sub_sequence: int


class FilePosition:
    """A file for each batch below `folder`, named by the records it holds; the names are the position.

    `ctx.connection` is a binary file, open for writing; a batch that writes nothing makes no file. suffix: of files,
    ".jsonl". The folder is on a file system of this machine, or on one whose `flock` works between machines. Whoever
    takes files away leaves the newest one of each shard.
    """

    def __init__(self, folder: str, *, suffix: str = "") -> None:
        if "/" in suffix:
            raise InvalidUse(f"{suffix!r} is no end of a file's name", try_='suffix=".jsonl"', argument="suffix")
        self._folder = str(folder)
        self._suffix = suffix

    def open(self, claim: Claim) -> FileSink:
        return FileSink(self.folder_of(claim), self._suffix, claim)

    def open_async(self, claim: Claim) -> Awaited:
        return Awaited(self.open(claim))

    def folder_of(self, claim: Claim) -> str:
        """Where a shard's files are."""
        names = (claim.application, claim.stream, f"{claim.shard}-{claim.shard_uuid[:8]}")
        return "/".join([self._folder, *(_safe(name) for name in names)])


class FileSink:
    """One shard's files."""

    def __init__(self, path: str, suffix: str, claim: Claim) -> None:
        self._path = path
        self._suffix = suffix
        self._claimed = claim
        self._opened: AtomicFolder | None = None
        self._writer = _Writer()
        self._ready: tuple[Place, Place] | None = None

    @property
    def connection(self) -> _Writer:
        return self._writer

    def claim(self) -> Place:
        folder = self._folder
        with folder.locked():
            now = self._read()
            mine = self._claimed
            if now is not None and (now.application_ms, now.lease_epoch) > mine.fence:
                raise mine.lost()
            place = mine.place
            if now is not None and now.application_ms == mine.application_ms:
                place = self._rolled_forward((now.sequence, now.sub_sequence))
            folder.sweep()
            self._write(place)
        return place

    def begin(self) -> None:
        self.rollback()
        self._writer.file = self._folder.stage()

    def advance(self, start: Place, end: Place) -> None:
        self._ready = (start, end)

    def commit(self) -> None:
        if self._ready is None:
            self.rollback()                # values of a feed, which have no place to be kept
            return
        start, end = self._ready
        with self._folder.locked():
            self._check(start)
            staged = self._writer.file
            assert staged is not None, "begin() opened a file"
            if staged.tell():
                self._folder.publish(staged, f"{_name(start)}-{_name(end)}{self._suffix}")
                self._writer.file = None
            self._write(end)
        self.rollback()

    def rollback(self) -> None:
        self._ready = None
        staged, self._writer.file = self._writer.file, None
        if staged is not None:
            self._folder.discard(staged)

    def transient(self, error: BaseException) -> bool:
        return isinstance(error, OSError) and error.errno in _DISK_TROUBLE

    def close(self) -> None:
        self.rollback()

    @property
    def _folder(self) -> AtomicFolder:
        if self._opened is None:
            self._opened = AtomicFolder(self._path)
        return self._opened

    def _check(self, start: Place) -> None:
        now = self._read()
        mine = self._claimed
        if now is not None and (now.application_ms, now.lease_epoch) > mine.fence:
            raise mine.lost()
        found = None if now is None else (now.sequence, now.sub_sequence)
        if found != start:
            raise mine.moved(start, found)

    def _read(self) -> _Position | None:
        data = self._folder.read(_POSITION)
        return None if data is None else msgspec.json.decode(data, type=_Position)

    def _write(self, place: Place) -> None:
        self._folder.write(_POSITION, msgspec.json.encode(_Position(*self._claimed.fence, *place)))

    def _rolled_forward(self, place: Place) -> Place:
        for name in self._folder.names():
            match = _FILE.match(name.removesuffix(self._suffix))
            if match is not None and (int(match[1]), int(match[2] or 0)) == place:
                return int(match[3]), int(match[4] or 0)
        return place


class _Writer:
    """What handlers write to: the file of the transaction they are in."""

    def __init__(self) -> None:
        self.file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        """Bytes to the end of the file. Raises InvalidUse outside a handler."""
        if self.file is None:
            raise InvalidUse("there is no transaction to write in", try_="write while records are handled",
                             argument="connection")
        return self.file.write(data)


def _name(place: Place) -> str:
    return f"{place[0]:0{_DIGITS}d}" + (f".{place[1]}" if place[1] else "")


def _safe(name: str) -> str:
    # Names of applications may hold anything; what is replaced is told apart by its code.
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02x}", name).replace("..", "%2e%2e")
