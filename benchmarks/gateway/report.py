"""Results of all rounds against the targets: a page and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gateway.systems import OWN, SYSTEMS, left_out
from benchmarks.gateway.works import FULL, Limits
from benchmarks.peers.report import Measured, client_cpu, p50, p99, rate, server_cpu
from benchmarks.peers.system import System

TITLES = {
    "put-records": "PutRecords, 500 records of 100 bytes, one shard",
    "put-records-8": "PutRecords, 500 records of 100 bytes, eight shards",
    "put-records-cbor": "PutRecords, 500 records of 100 bytes, CBOR",
    "put-records-boto3": "PutRecords through boto3",
    "put-record": "PutRecord, one record, 32 connections",
    "get-records": "GetRecords, up to 10,000 records a call",
    "subscribe": "SubscribeToShard: put to event",
    "stalled": "A stalled subscriber",
    "listing": "Streams listed and described",
}
Line = dict[str, Any]
Verdict = tuple[str, bool | None]          # what was reached; whether that is the target (None: none was set for it)


@dataclass
class Table:
    """absent: why a system cannot be run here, by name."""

    host: dict[str, Any]
    limits: Limits
    rounds: int
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    _measured: dict[tuple[str, str], Measured] = field(default_factory=dict)

    def add_system(self, name: str, system: System) -> bool:
        """Whether it is there."""
        if why := system.absent():
            self.absent[name] = why
        else:
            self.versions[name] = system.version()
        return not why

    def add(self, name: str, round_number: int, line: Line) -> None:
        measured = self._measured.setdefault((name, line["work"]), Measured())
        if "error" in line:
            measured.errors.append(f"round {round_number}: {line['error']}")
        else:
            measured.rounds[round_number] = line

    def measured(self, name: str, work: str) -> Measured:
        return self._measured.get((name, work), Measured())

    @property
    def works(self) -> list[str]:
        return [work for work in TITLES if any(of == work for _, of in self._measured)]

    @property
    def failed(self) -> bool:
        return any(measured.errors for (name, _), measured in self._measured.items() if name == OWN)

    def best_peer(self, work: str) -> tuple[str, float] | None:
        """Who of the others was fastest, and its median."""
        found = [
            (name, self.measured(name, work).median(rate)) for name in self.versions
            if name != OWN and self.measured(name, work).rounds
        ]  # fmt: skip
        return max(found, key=lambda each: each[1]) if found else None


# -- targets ---------------------------------------------------------------------------------------------------------


def _rate_of(least: int) -> Callable[[Table, str], Verdict]:
    def judge(table: Table, work: str) -> Verdict:
        reached = table.measured(OWN, work).median(rate)
        return f"{reached:,.0f}/s", reached >= least

    return judge


def _times_best(least: float) -> Callable[[Table, str], Verdict]:
    def judge(table: Table, work: str) -> Verdict:
        best = table.best_peer(work)
        if best is None:
            return "nobody to compare with", None
        times = table.measured(OWN, work).median(rate) / best[1]
        return f"{times:,.1f} × {best[0]} ({best[1]:,.0f}/s)", times >= least

    return judge


def _server_share(table: Table, work: str) -> Verdict:
    share = table.measured(OWN, work).median(lambda line: line["server_cpu_seconds"] / line["client_cpu_seconds"])
    return f"{share:.0%}", share < 0.2


def _pushed(table: Table, work: str) -> Verdict:
    measured = table.measured(OWN, work)
    half, most = measured.median(p50), measured.median(p99)
    return f"{half:.1f} / {most:.1f} ms", half <= 3 and most <= 15


def _grown(table: Table, work: str) -> Verdict:
    measured = table.measured(OWN, work)
    grown, put = measured.median(lambda line: line["grown_mib"]), measured.median(lambda line: line["put_mib"])
    return f"{grown:+,.0f} MiB while {put:,.0f} MiB were put", grown < max(16, put / 20)


def _seconds(table: Table, work: str) -> Verdict:
    measured = table.measured(OWN, work)
    seconds, shards = measured.median(lambda line: line["seconds"]), measured.median(lambda line: line["shards"])
    return f"{seconds:.2f} s for {shards:,.0f} shards", seconds < 1 if shards >= 10_000 else None


TARGETS: tuple[tuple[str, str, Callable[[Table, str], Verdict]], ...] = (
    ("put-records", "at least 300,000 records/s", _rate_of(300_000)),
    ("put-records", "at least 20 × the best of the three", _times_best(20)),
    ("put-records-boto3", "server CPU below 20 % of the client's", _server_share),
    ("put-record", "at least 8,000 requests/s", _rate_of(8_000)),
    ("get-records", "at least 500,000 records/s", _rate_of(500_000)),
    ("subscribe", "p50 ≤ 3 ms, p99 ≤ 15 ms", _pushed),
    ("stalled", "memory does not move", _grown),
    ("listing", "below 1 s for 10,000 shards", _seconds),
)


def verdicts(table: Table) -> list[tuple[str, str, str, bool | None]]:
    """Work, target, what was reached, and whether it is the target."""
    found = []
    for work, target, judge in TARGETS:
        if table.measured(OWN, work).rounds:
            found.append((work, target, *judge(table, work)))
    return found


# -- the page --------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    host = table.host
    lines = [
        "# The Kinesis API, measured",
        "",
        "Generated by `make bench-gateway`; do not edit. Real servers and one loading process on loopback, one system",
        "after the other, round after round. One copy of each record. *disk*: acknowledged after `fdatasync`; *page",
        "cache*: not synced; *memory*: never on a disk. MB is 10^6 bytes of data and keys. CPU is seconds a million",
        "records (for `listing`: streams), of the server and of the client. Latencies are those of a request as the",
        "loaded client sees it.",
        "",
        f"{host['date']} · {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB · Linux {host['kernel']}, "
        f"{host['file_system']} · Python {host['python']} · streamkit {host['streamkit']} at {host['commit']} · "
        f"{table.rounds} round{'s' if table.rounds > 1 else ''}, median",
        "",
        f"The machine was {host['load']}; `fdatasync` of 4 KiB alone took {host['sync']} then.",
        "",
    ]
    if table.limits != FULL:
        lines += ["**Not the full form; see the seconds of each work in the JSON.**", ""]
    lines += ["## Targets", "", "| what | target | reached | |", "|---|---|---|---|"]
    marks = {True: "met", False: "**missed**", None: ""}
    lines += [f"| {TITLES[work]} | {target} | {got} | {marks[met]} |" for work, target, got, met in verdicts(table)]
    for work in table.works:
        lines += ["", f"## {TITLES[work]}", "", *_work_table(table, work)]
    lines += _failures(table)
    lines += ["", "## How each was run", ""]
    for system in SYSTEMS:
        name = system.variants[0].name
        known = table.versions.get(name) or f"absent: {table.absent.get(name, 'not asked for')}"
        lines.append(f"* **{name}** ({_one_line(known)}). {system.setup}")
    return "\n".join(lines) + "\n"


def _work_table(table: Table, work: str) -> list[str]:
    heads = ["system", "durability", "connections", "records/s", "MB/s", "p50 ms", "p99 ms", "CPU server", "CPU client",
             "server cores", "client cores", "server MiB", "checked"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * (len(heads) - 3) + "---|"]
    for system in SYSTEMS:
        variant = system.variants[0]
        measured = table.measured(variant.name, work)
        start = [variant.name, variant.durability]
        if not measured.rounds:
            why = left_out(variant.name, work) or table.absent.get(variant.name)
            why = why or "; ".join(measured.errors) or "not measured"
            lines.append(f"| {' | '.join(start)} | {_one_line(why)} |{' |' * (len(heads) - 3)}")
            continue
        last = measured.rounds[max(measured.rounds)]
        known = "latencies_ms" in last
        latencies = [f"{measured.median(value):,.2f}" if known else "" for value in (p50, p99)]
        cells = [
            *start, str(last.get("connections", "")), f"{measured.median(rate):,.0f}",
            f"{measured.median(lambda line: line['bytes'] / line['seconds'] / 1e6):,.1f}", *latencies,
            f"{measured.median(server_cpu):,.2f}", f"{measured.median(client_cpu):,.2f}",
            f"{measured.median(lambda line: line['server_cpu_seconds'] / line['seconds']):.2f}",
            f"{measured.median(lambda line: line['client_cpu_seconds'] / line['seconds']):.2f}",
            f"{measured.median(lambda line: line['server_peak_mib']):,.0f}", last["checked"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _failures(table: Table) -> list[str]:
    lines = [
        f"* {name}, {work}: {_one_line(error)}"
        for name in table.versions for work in table.works for error in table.measured(name, work).errors
    ]  # fmt: skip
    return ["", "## What failed", "", *lines] if lines else []


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]


def write_json(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": "streamkit.gateway.benchmarks.v1",
        "machine": table.host,
        "limits": asdict(table.limits),
        "rounds": table.rounds,
        "targets": [
            {"work": work, "target": target, "reached": got, "met": met} for work, target, got, met in verdicts(table)
        ],
        "systems": [
            {"name": s.variants[0].name, "durability": s.variants[0].durability, "replicas": 1,
             "version": table.versions.get(s.variants[0].name, ""), "absent": table.absent.get(s.variants[0].name, "")}
            for s in SYSTEMS
        ],
        "results": [
            {"system": name, "work": work, "errors": measured.errors, "rounds": list(measured.rounds.values()),
             "records_per_second": statistics.median(measured.values(rate)) if measured.rounds else None}
            for name in table.versions for work in table.works
            if (measured := table.measured(name, work)).rounds or measured.errors
        ],
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1) + "\n")
