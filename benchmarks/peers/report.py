"""The results of all rounds, as medians and ratios: a table a work, JSON, and how each system was run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import refused
from benchmarks.peers.system import DISK, MEMORY, PAGE_CACHE, System, Variant
from benchmarks.peers.works import FULL, LARGE_BYTES, SMALL_BYTES, Limits

TITLES = {
    "check": "Check",
    "produce": f"Produce, {SMALL_BYTES} bytes",
    "consume": f"Consume, {SMALL_BYTES} bytes",
    "produce-1k": f"Produce, {LARGE_BYTES} bytes",
    "single": "One record a request, pipelined",
    "latency": "Latency at a fixed rate",
}
BASELINES = {(1, DISK): "streamkit-1-fsync", (1, PAGE_CACHE): "streamkit-1-os", (1, MEMORY): "streamkit-1-os",
             (3, DISK): "streamkit-3-fsync", (3, PAGE_CACHE): "streamkit-3-os"}  # fmt: skip


@dataclass(slots=True)
class Measured:
    """One work of one variant over all rounds. errors: of the rounds that failed."""

    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def values(self, value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [value(line) for line in self.rounds.values()]

    def median(self, value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(self.values(value))


def rate(line: dict[str, Any]) -> float:
    return float(line["records"] / line["seconds"])


def p50(line: dict[str, Any]) -> float:
    return float(line["latencies_ms"]["p50"])


def p99(line: dict[str, Any]) -> float:
    return float(line["latencies_ms"]["p99"])


def server_cpu(line: dict[str, Any]) -> float:
    return float(line["server_cpu_seconds"] / line["records"] * 1e6)


def client_cpu(line: dict[str, Any]) -> float:
    return float(line["client_cpu_seconds"] / line["records"] * 1e6)


class Table:
    def __init__(self, host: dict[str, Any], limits: Limits, rounds: int) -> None:
        self.host, self.limits, self.rounds = host, limits, rounds
        self.variants: list[Variant] = []
        self.systems: dict[str, tuple[System, str]] = {}       # variant → its system, and the system's version
        self.absent: dict[str, str] = {}
        self._measured: dict[tuple[str, str], Measured] = {}

    def add_systems(self, chosen: list[tuple[System, Variant]]) -> list[tuple[System, Variant]]:
        """Returns those that are present."""
        present = []
        for system, variant in chosen:
            self.variants.append(variant)
            if why := _absent(system):
                self.absent[variant.key] = why
                self.systems[variant.key] = (system, "absent")
            else:
                self.systems[variant.key] = (system, system.version())
                present.append((system, variant))
        return present

    def add(self, variant: Variant, round_number: int, line: dict[str, Any]) -> None:
        measured = self._measured.setdefault((variant.key, line["work"]), Measured())
        if "error" in line:
            measured.errors.append(f"round {round_number}: {line['error']}")
        else:
            measured.rounds[round_number] = line

    def measured(self, key: str, work: str) -> Measured:
        return self._measured.get((key, work), Measured())

    @property
    def works(self) -> list[str]:
        return [work for work in TITLES if any(of == work for _, of in self._measured)]

    @property
    def failed(self) -> bool:
        return any(measured.errors for measured in self._measured.values())

    def ratio(self, variant: Variant, work: str, value: Callable[[dict[str, Any]], float]) -> float | None:
        """Median over rounds of streamkit's value by the variant's, with as many copies and the same durability."""
        baseline = self.measured(BASELINES[variant.copies, variant.durability], work).rounds
        own = self.measured(variant.key, work).rounds
        ratios = [value(baseline[n]) / value(own[n]) for n in own if n in baseline and value(own[n]) > 0]
        return statistics.median(ratios) if ratios else None


def _absent(system: System) -> str:
    why, said = system.absent(), refused(system.variants[0].key)
    return f"cannot be had here: {said.read_text()}" if why and said.exists() else why


def write_json(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": "streamkit.peers.v1",
        "machine": table.host,
        "limits": asdict(table.limits),
        "rounds": table.rounds,
        "variants": [
            {**asdict(variant), "version": table.systems[variant.key][1], "absent": table.absent.get(variant.key, "")}
            for variant in table.variants
        ],
        "results": [
            {"variant": variant.key, "work": work, "errors": measured.errors, "rounds": list(measured.rounds.values())}
            for variant in table.variants for work in table.works
            if (measured := table.measured(variant.key, work)).rounds or measured.errors
        ],
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1) + "\n")


def markdown(table: Table, plot: Path | None) -> str:
    host = table.host
    lines = [
        "# Peers",
        "",
        "Generated by `make bench-peers`; do not edit. The same work on streamkit and on the systems one would take",
        "instead, one after the other on one machine, client and servers together. [Decision 0058]"
        "(decisions/0058-peers-in-one-run.md) says why it is done this way.",
        "",
        f"{host['date']} · {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB · Linux {host['kernel']}, "
        f"{host['file_system']} · Python {host['python']} · streamkit {host['streamkit']} at {host['commit']} · "
        f"{table.rounds} round{'s' if table.rounds > 1 else ''}, median",
        "",
    ]
    if plot is not None:
        lines += [f"![records a second]({plot.name})", ""]
    if table.limits != FULL:
        lines += ["**A short run: it shows that everything works; its figures are not to be quoted.**", ""]
    lines += EXPLANATION
    lines += limits_note(table.limits)
    for work in table.works:
        if work != "check":
            lines += ["", f"## {TITLES[work]}", "", *_work_table(table, work)]
    lines += _failures(table)
    lines += ["", "## How each was run", "", *_setups(table)]
    return "\n".join(lines) + "\n"


EXPLANATION = [
    "*Durability* is what an acknowledgement means when power is lost everywhere at once: *disk* was synced before it,",
    "on a majority of the copies; *page cache* was not yet; *memory* never is. *Ratio* is streamkit's figure by that",
    "system's with as many copies and the same durability (a system that only has memory: with streamkit's page",
    "cache); above 1, streamkit is ahead, for latencies below 1. CPU is seconds a million records, of all server",
    "processes and of the client. Memory is the sum of the servers' highest resident sizes during the work.",
    "",
]


def limits_note(limits: Limits) -> list[str]:
    return [
        f"Each work ends after {limits.small_records:,} records ({limits.large_records:,} of 1 KiB, "
        f"{limits.single_records:,} of one a request) or {limits.seconds:g} s, whichever comes first, so that",
        f"slow systems do fewer; nothing is extrapolated. {limits.warm_seconds:g} s of the same warm it up.",
        "Everything produced is acknowledged within the time; what is consumed is compared by count and checksum.",
        "Values are random bytes that do not compress, compression is off everywhere; one log (shard, partition,",
        "stream) each, put by one process.",
    ]


def _work_table(table: Table, work: str) -> list[str]:
    slow = work == "latency"
    heads = ["p50 ms", "p99 ms", "ratio of p99", "at rec/s"] if slow else ["records/s", "MB/s", "ratio"]
    heads = ["system", "copies", "durability", "setting", *heads, "CPU servers", "CPU client", "MiB", "records"]
    left = 4
    marks = ["---" if i < left and i != 1 else "--:" for i in range(len(heads))]
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(marks)}|"]
    for variant in table.variants:
        start = [variant.name, str(variant.copies), variant.durability, variant.setting]
        measured = table.measured(variant.key, work)
        if not measured.rounds:
            why = table.absent.get(variant.key) or "; ".join(measured.errors) or "not measured"
            lines.append(f"| {' | '.join(start)} | {_one_line(why)} |{' |' * (len(heads) - left - 1)}")
            continue
        ratio = table.ratio(variant, work, p99 if slow else rate)
        ratio_text = "" if ratio is None or variant.name == "streamkit" else _number(ratio)
        if slow:
            figures = [f"{measured.median(p50):.2f}", f"{measured.median(p99):.2f}", ratio_text,
                       f"{measured.median(lambda line: line['rate']):,.0f}"]  # fmt: skip
        else:
            megabytes = measured.median(lambda line: line["bytes"] / line["seconds"] / 1e6)
            figures = [f"{measured.median(rate):,.0f}", f"{megabytes:,.1f}", ratio_text]
        figures += [
            _number(measured.median(server_cpu)), _number(measured.median(client_cpu)),
            f"{measured.median(lambda line: line['server_peak_mib']):,.0f}",
            f"{measured.median(lambda line: line['records']):,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join([*start, *figures])} |")
    return lines


def _failures(table: Table) -> list[str]:
    lines = [
        f"* {variant.key}, {work}: {_one_line(error)}"
        for variant in table.variants for work in table.works
        for error in table.measured(variant.key, work).errors
    ]  # fmt: skip
    return ["", "## What failed", "", *lines] if lines else []


def _setups(table: Table) -> list[str]:
    lines = []
    seen = set()
    for variant in table.variants:
        system, version = table.systems[variant.key]
        if id(system) in seen:
            continue
        seen.add(id(system))
        note = f"absent: {table.absent[variant.key]}" if variant.key in table.absent else version
        lines.append(f"* **{variant.name}** ({note}). {system.setup}")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
