"""Files below a folder of this machine."""

from __future__ import annotations

from typing import Literal

from streamkit.delivery.chunk import Chunk
from streamkit.delivery.names import Template
from streamkit.errors import InvalidUse, SinkMisused
from streamkit.runtime.atomic_files import AtomicFolder
from streamkit.runtime.real import RealExecutor

_REFUSALS = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_THREADS = 4


class FileSink:
    """A file for each chunk below `folder`: on disk and whole, or not there. names: as names.Template.

    A chunk that comes again replaces its own file by the same bytes.
    """

    takes: Literal["body"] = "body"

    def __init__(self, folder: str, names: str = "{arrived:%Y/%m/%d/%H}/", *, zone: str = "UTC") -> None:
        if ".." in names.split("/"):
            raise InvalidUse(f"{names!r} leads out of the folder", try_="take the dots out", argument="names")
        self.template = Template(names.lstrip("/"), zone=zone)
        self._folder = str(folder).rstrip("/")
        self._executor: RealExecutor | None = None

    async def open(self) -> None:
        """Threads for what a disk takes its time for; folders are made as they are needed."""
        self._executor = RealExecutor(_THREADS)

    async def write(self, chunk: Chunk) -> None:
        """Raises OSError, SinkMisused."""
        assert self._executor is not None, "it is open"
        folder, name = self._place(chunk.name)
        try:
            await self._executor.run(_publish, folder, name, chunk.body)
        except _REFUSALS as error:
            raise SinkMisused(f"{folder}: {error.strerror}", try_="give the delivery a folder it may write to",
                              sink="files", told=str(error)) from error  # fmt: skip

    async def delete(self, name: str) -> None:
        """Nothing happens when there is no such file."""
        assert self._executor is not None, "it is open"
        await self._executor.run(_remove, *self._place(name))

    async def close(self) -> None:
        """The threads end."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _place(self, name: str) -> tuple[str, str]:
        # A record's own words in a name cannot hold a slash, and a folder called ".." would be one of them alone.
        folder, _, last = f"{self._folder}/{name}".rpartition("/")
        return "/".join("__" if part == ".." else part for part in folder.split("/")), last


def _publish(folder: str, name: str, body: bytes) -> None:
    AtomicFolder(folder).write(name, body)


def _remove(folder: str, name: str) -> None:
    AtomicFolder(folder).remove(name)
