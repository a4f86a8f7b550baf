"""What the owner does after a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effects:
    """high_watermark: readers may read up to here and puts below it are acknowledged; None: it did not move."""

    high_watermark: int | None = None


NOTHING = Effects()
