"""What a sink is. A user's own is one small class; it need not inherit from anything here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from streamkit.delivery.chunk import Chunk, Takes


@dataclass(frozen=True, slots=True)
class Refused:
    """One record of a chunk that the store will never take. index: in the chunk; code: the store's own."""

    index: int
    code: str
    message: str


class Sink(Protocol):
    """Where chunks go.

    `write` is all or nothing, but for the records it returns as refused, and may be repeated with the same `chunk.id`,
    also by another process, also at the same time: then the store holds the chunk once. It raises what passes, and is
    called again, not before a `retry_after_ms` among the error's facts; `SinkMisused` for what only a person can put
    right: that is logged as an error, and it is called again all the same.

    takes: which member of a chunk is filled in.
    """

    @property
    def takes(self) -> Takes: ...

    async def open(self) -> None:
        """Once, on the event loop that calls the other methods. Raises what is wrong, and is called again."""

    async def write(self, chunk: Chunk) -> Iterable[Refused] | None:
        """Returns when the chunk is stored for good."""

    async def close(self) -> None:
        """The last call."""


class Named(Protocol):
    """A sink that writes objects: it says where."""

    template: Any

    async def delete(self, name: str) -> None:
        """An object that a former try planned and this one does not write. Nothing happens when there is none."""
