"""The peers' suite on streamkit alone, in its tiny form; what it makes of rounds; absent and failed systems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import measure
from benchmarks.peers.loading import load
from benchmarks.peers.report import Table, markdown, write_json
from benchmarks.peers.servers import Servers, family, free_ports
from benchmarks.peers.systems import SYSTEMS, system_of, variant_of
from benchmarks.peers.works import TINY, WORKS

FACTS = ("date", "cpu", "cores", "memory_gib", "kernel", "file_system", "python", "streamkit", "commit")
HOST = dict.fromkeys(FACTS, 1)


def line(work, *, records=1000, seconds=1.0, p99=5.0):
    return {
        "work": work, "records": records, "bytes": records * 100, "seconds": seconds, "server_cpu_seconds": 0.5,
        "client_cpu_seconds": 0.25, "server_peak_mib": 100.0, "checked": "yes", "rate": 1000,
        "latencies_ms": {"p50": 1.0, "p99": p99, "max": 9.0},
    }  # fmt: skip


def table_of(*keys, rounds=2):
    table = Table(HOST, TINY, rounds)
    table.add_systems([(system_of(key), variant_of(key)) for key in keys])
    return table


@pytest.mark.parametrize("key", ["streamkit-1-fsync", "streamkit-3-os"])
def test_every_work_runs_on_streamkit_in_its_tiny_form(key):
    lines = measure(system_of(key), variant_of(key), list(WORKS), TINY)

    assert [found["work"] for found in lines] == list(WORKS)
    for found in lines:
        assert "error" not in found, found
        assert found["records"] > 0
        assert found["server_peak_mib"] > 0
        assert found["checked"]


def test_a_ratio_is_taken_within_a_round_against_the_same_copies_and_durability():
    table = table_of("streamkit-1-fsync", "streamkit-1-os", "redis-always", "redis-everysec", rounds=3)
    for round_number, (own, peer) in enumerate([(100, 50), (300, 100), (400, 40)], 1):
        table.add(variant_of("streamkit-1-fsync"), round_number, line("produce", records=own))
        table.add(variant_of("redis-always"), round_number, line("produce", records=peer))
    table.add(variant_of("redis-everysec"), 1, line("produce"))

    assert table.ratio(variant_of("redis-always"), "produce", lambda of: of["records"]) == 3
    assert table.ratio(variant_of("redis-everysec"), "produce", lambda of: of["records"]) is None


def test_an_absent_system_and_a_failed_work_are_rows_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(type(system_of("moto")), "absent", lambda self: "moto is not here")
    table = table_of("streamkit-1-fsync", "moto")
    table.add(variant_of("streamkit-1-fsync"), 1, {"work": "produce", "error": "the | disk broke"})

    page = markdown(table, None)

    assert "| moto | 1 | memory | in memory | moto is not here |" in page
    assert "| streamkit | 1 | disk | fsync (default) | round 1: the / disk broke |" in page
    assert "What failed" in page
    assert table.failed
    write_json(tmp_path / "peers.json", table)
    document = json.loads((tmp_path / "peers.json").read_text())
    assert [variant["absent"] for variant in document["variants"]] == ["", "moto is not here"]


def test_the_page_holds_every_work_with_rates_latencies_and_setups():
    table = table_of("streamkit-1-fsync")
    for work in WORKS:
        table.add(variant_of("streamkit-1-fsync"), 1, line(work))

    page = markdown(table, Path("peers.svg"))

    assert "| streamkit | 1 | disk | fsync (default) | 1,000 | 0.1 |  | 500 | 250 | 100 | 1,000 |" in page
    assert "| streamkit | 1 | disk | fsync (default) | 1.00 | 5.00 |  | 1,000 |" in page
    assert "![records a second](peers.svg)" in page
    assert page.count("## ") == len(WORKS)              # the check has no table, the setups have a heading


def test_variants_have_names_of_their_own_and_a_baseline():
    keys = [variant.key for system in SYSTEMS for variant in system.variants]

    assert len(set(keys)) == len(keys)
    assert all(system.setup.endswith(".") for system in SYSTEMS)


def test_servers_end_with_all_their_descendants(tmp_path):
    servers = Servers(tmp_path)
    servers.run([sys.executable, "-c", "import subprocess, sys; print('up', flush=True);"
                 "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"])  # fmt: skip
    servers.wait(lambda: servers.all_said("up") and len(servers.pids) == 2)
    pids = servers.pids

    servers.stop()

    for _ in range(1000):                   # the kernel takes a moment to end what was killed
        if not any(running(pid) for pid in pids):
            break
    assert not any(running(pid) for pid in pids)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_client_that_breaks_leaves_a_reason_for_each_work():
    request = {"variant": "streamkit-1-fsync", "works": ["produce", "latency"], "work_seconds_max": 10}
    found = load("benchmarks.peers.client", request)

    assert [one["work"] for one in found] == ["produce", "latency"]
    assert all("KeyError" in one["error"] for one in found)


def test_free_ports_differ():
    assert len(set(free_ports(20))) == 20
    assert family(1 << 30) == [1 << 30]


def test_the_command_names_absent_systems_without_running_any():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--list"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip

    assert {found.split()[0] for found in done.stdout.splitlines()} == {
        variant.key for system in SYSTEMS for variant in system.variants
    }
