"""Payloads as they are, one behind the other, with something in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamkit.delivery.formats.format import Formatted


@dataclass(frozen=True, slots=True)
class Lines:
    """delimiter: behind each record; b"" for none."""

    delimiter: bytes = b"\n"
    extension: str = ""
    content_type: str = "application/octet-stream"
    compresses: bool = False

    def encode(self, rows: Sequence[bytes]) -> Formatted:
        """Nothing is unfit."""
        if not rows:
            return Formatted(b"")
        return Formatted(self.delimiter.join(rows) + self.delimiter)
