"""What a format is: records in, one body out, and which of them it cannot take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Unfit:
    """A record that the format cannot take. index: among those it was given."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Formatted:
    """The body of all records but the unfit ones."""

    body: bytes
    unfit: list[Unfit] = field(default_factory=list)


class Format(Protocol):
    """compresses: inside, so that nothing else may. content_type: of the body."""

    @property
    def extension(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def compresses(self) -> bool: ...

    def encode(self, rows: Sequence[bytes]) -> Formatted:
        """One body of payloads. In a thread; the same rows give the same bytes."""
