"""What the libraries must do, and which test or benchmark shows it: acceptance.md, made by generate.py.

A test says so itself: its docstring, or that of its module, holds "Acceptance: producer 7" or "Acceptance: consumer 3".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"Acceptance: (producer|consumer) (\d+)((?:, \d+)*)")

CRITERIA = {
    "producer": (
        "Each record is stored once and in the order of its key, though answers are lost, late, repeated or cut and "
        "leaders die",
        "The same through a storm of splits and merges, and no record in a shard whose range excludes it",
        "A batch that was cancelled and arrives later is refused",
        "Not delivered means absent, delivered means present; unknown only while nobody can be asked, and `resolve` "
        "settles it",
        "Producer state that expired while a batch was in doubt ends as unknown, never as a silent duplicate",
        "Two processes under one name: the elder is fenced, and nothing of it lands afterwards",
        "A named producer with `app_seq` that is killed anywhere copies a file with neither loss nor duplicate",
        "A broker that stands still: memory stays within the buffer, and each way of being full does what it says",
        "A process that forks with records in its buffer: none twice, none lost, no deadlock",
        "Every handle comes to an end: cancelled, closed, forked, its loop gone",
        "At rest a record costs the round trip and little more; under load it waits no longer than linger and a round "
        "trip",
        "Throughput on one core: bulk, one call a record, a thousand tasks that wait for each",
        "Copies: one of a value, none a record in bulk",
        "Data that does not shrink cost about what no compression costs",
        "Keyless records leave a slow broker aside, and the rest goes on at its pace",
        "Hygiene: nothing done at rest, no file written, no network at import",
    ),
    "consumer": (
        "A zombie: stopped for three time-outs and woken, it delivers nothing, its checkpoint is fenced, `lease_lost` "
        "comes once",
        "A machine that slept: the same, told by the clock that counts sleep",
        "A record that raises, one that hangs, one that kills the process: each ends in the dead-letter stream, its "
        "neighbours in order",
        "A checkpoint after a failed batch does not move past what succeeded",
        "Splits and merges under load: every record at least once, in the order of its key, no lease stuck",
        "A crash before the first checkpoint skips nothing, even with `start=\"latest\"`",
        "A coordinator that fails over every ten seconds: no lease moves, no checkpoint is lost",
        "A rolling deploy: each shard pauses for less than a second, nothing is delivered again",
        "A fleet without load: no lease moves after the first balance",
        "Lanes that crash: nothing that was marked finished is repeated",
        "Memory with a slow handler and many shards stays within the prefetch budget",
        "Exactly once: sink, prepared effect and transaction, with workers killed at random points",
        "Record processors written for amazon_kclpy, of every generation, and children that misbehave",
        "Lag is right while no worker is connected",
        "A reset to a time before a split replays the ancestors in order, and fenced workers come back by themselves",
    ),
}  # fmt: skip


def page(note: str) -> str:
    lines = [
        "# Acceptance", "", note, "",
        "What the producer and the consumer libraries must do, and the tests and benchmarks that show it.",
    ]  # fmt: skip
    shown = dict(_shown())
    for library, criteria in CRITERIA.items():
        lines += ["", f"## {library.capitalize()}", "", "| | it holds that | shown by |", "|--:|---|---|"]
        for number, criterion in enumerate(criteria, 1):
            where = "<br>".join(f"`{place}`" for place in shown.get((library, number), []))
            lines.append(f"| {number} | {criterion} | {where} |")
    return "\n".join(lines) + "\n"


def unshown() -> list[tuple[str, int]]:
    """Criteria that nothing names."""
    wanted = {(library, number) for library, criteria in CRITERIA.items() for number in range(1, len(criteria) + 1)}
    return sorted(wanted - dict(_shown()).keys())


def unknown() -> list[tuple[str, int]]:
    """Marks that name no criterion."""
    return [mark for mark, _ in _shown() if not 0 < mark[1] <= len(CRITERIA[mark[0]])]


def _shown() -> Iterator[tuple[tuple[str, int], list[str]]]:
    found: dict[tuple[str, int], list[str]] = {}
    for room in ("tests", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if not MARK.search(text):
                continue
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                for match in MARK.finditer(ast.get_docstring(node) or ""):
                    where = name if isinstance(node, ast.Module) else f"{name}::{node.name}"
                    for number in (match[2], *match[3].replace(",", " ").split()):
                        found.setdefault((match[1], int(number)), []).append(where)
    yield from found.items()
