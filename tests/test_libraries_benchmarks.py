"""The measurements of the client libraries on streamkit in their tiny form; what the page makes of them."""

import json

from benchmarks.libraries.__main__ import measure
from benchmarks.libraries.entries import ENTRIES, OWN
from benchmarks.libraries.report import Table, markdown, write_json
from benchmarks.libraries.works import FULL, TINY, WORKS

FACTS = ("date", "cpu", "cores", "memory_gib", "kernel", "file_system", "python", "streamkit", "commit")
HOST = dict.fromkeys(FACTS, 1)


def line(work, seconds, client_cpu):
    return {
        "work": work, "records": 1000, "bytes": 100_000, "seconds": seconds, "server_cpu_seconds": 0.5,
        "client_cpu_seconds": client_cpu, "server_peak_mib": 100.0, "checked": "yes",
    }  # fmt: skip


def test_every_work_runs_on_streamkit_in_its_tiny_form(tmp_path):
    own = ENTRIES[0]
    assert own.name == OWN

    lines = measure(own, list(WORKS), TINY)

    assert [found["work"] for found in lines] == list(WORKS)
    for found in lines:
        assert "error" not in found, found
        assert found["records"] == TINY.records
        assert found["client_cpu_seconds"] > 0
    table = Table(HOST, TINY, 1)
    for found in lines:
        table.add(own, 1, found)
    assert "A short run" in markdown(table)
    write_json(tmp_path / "libraries.json", table)
    assert len(json.loads((tmp_path / "libraries.json").read_text())["results"]) == len(WORKS)


def test_ratios_say_how_far_streamkit_is_ahead_and_absent_libraries_are_named():
    table = Table(HOST, FULL, 1)
    own, other, absent = ENTRIES[:3]
    table.add(own, 1, line("put", seconds=1.0, client_cpu=0.25))
    table.add(other, 1, line("put", seconds=4.0, client_cpu=0.5))
    table.absent[absent.name] = "not installed: make bench-libraries-install"

    first = markdown(table).split("## ")[1]
    rows = {row.split("|")[1].strip(): row for row in first.splitlines() if row.startswith("| ")}

    assert "| 4.00 | 2.00 |" in rows[other.name]
    assert "make bench-libraries-install" in rows[absent.name]
    assert "1,000 |" in rows[own.name]
