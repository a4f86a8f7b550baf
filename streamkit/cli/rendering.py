"""How answers look: aligned tables without borders, numbers and times for people, JSON lines for programs.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Prints aligned columns, two spaces apart. right: the headers whose columns are numbers."""
    lines = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    numeric = {i for i, header in enumerate(headers) if header in set(right)}
    for line in lines:
        cells = (cell.rjust(widths[i]) if i in numeric else cell.ljust(widths[i]) for i, cell in enumerate(line))
        click.echo("  ".join(cells).rstrip())


def emit(schema: str, facts: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own, `schema` first ("stream" becomes "streamkit.stream.v1")."""
    import msgspec

    sys.stdout.flush()
    line = msgspec.json.encode({"schema": f"streamkit.{schema}.v1", **facts}) + b"\n"
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Progress and hints, on stderr."""
    click.echo(text, err=True)


def count(number: int) -> str:
    """1204 → "1 204"."""
    return f"{number:,}".replace(",", " ")


def size(number_bytes: float) -> str:
    """32 925 286 → "31.4 MiB"."""
    if number_bytes < 1024:
        return f"{number_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        number_bytes /= 1024
        if number_bytes < 1024 or unit == "TiB":
            break
    return f"{number_bytes:.0f} {unit}" if number_bytes >= 100 else f"{number_bytes:.1f} {unit}"


def duration(milliseconds: float) -> str:
    """842 000 → "14 m 02 s"; below ten seconds with a decimal."""
    seconds = milliseconds / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} m" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def instant(milliseconds: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if milliseconds is None:
        return None
    text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def clock(milliseconds: int) -> str:
    """Local time of day, as `tail` shows it."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Of numbers already sorted; the one that `fraction` of them do not exceed. 0.0 when there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))] if ordered else 0.0


def printable(text: str) -> str:
    """Control characters escaped, so that a record cannot move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
