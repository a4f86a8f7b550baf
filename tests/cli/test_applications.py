"""consume, lag and app: workers from the shell, and what is said about them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    while started:
        process = started.pop()
        process.kill()
        process.communicate()


def consume(served, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "streamkit.cli", "consume", *arguments, "--url", served.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
    )  # fmt: skip
    started.append(process)
    return process


def stop(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors
    return errors


def test_a_python_handler_gets_every_record_and_leaves_its_checkpoint(served, tmp_path):
    (tmp_path / "bills.py").write_text(
        "import sys\n\n"
        "def bill(order: dict) -> None:\n"
        "    sys.stdout.write(f'bill {order[\"id\"]}\\n')    # one piece: shards share the output\n"
        "    sys.stdout.flush()\n"
    )
    served.run("stream", "create", "to-bill", "--shards", "2")
    served.run("put", "to-bill", "--lines", "--key-from", "id", stdin="".join(f'{{"id": {i}}}\n' for i in range(20)))
    process = consume(served, "to-bill", "--app", "billing-cli", "--from", "trim_horizon", "bills:bill", cwd=tmp_path)
    seen = [process.stdout.readline().split()[1] for _ in range(20)]
    stop(process)
    (row,) = served.json("lag", "--app", "billing-cli")

    assert sorted(map(int, seen)) == list(range(20))
    assert (row["application"], row["stream"], row["lag_records"], row["workers"]) == ("billing-cli", "to-bill", 0, 0)


def test_a_program_gets_lines_and_its_failure_is_tried_again(served, tmp_path):
    program = tmp_path / "process.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "mark = pathlib.Path('failed-once')\n"
        "for line in sys.stdin:\n"
        "    record = json.loads(line)\n"
        "    if record['data']['id'] == 2 and not mark.exists():\n"
        "        mark.touch(); print('fail: not yet', flush=True); continue\n"
        "    with open('done', 'a') as file: print(record['data']['id'], file=file)\n"
        "    print('ok', flush=True)\n"
    )
    served.run("stream", "create", "to-run")
    process = consume(
        served, "to-run", "--app", "runner-cli", "--from", "trim_horizon", "--exec", f"{sys.executable} process.py",
        cwd=tmp_path,
    )  # fmt: skip
    served.run("put", "to-run", "--lines", "--key", "k", stdin="".join(f'{{"id": {i}}}\n' for i in range(5)))
    done = tmp_path / "done"
    while not done.exists() or len(done.read_text().split()) < 5:
        assert process.poll() is None, process.stderr.read()
    stop(process)

    assert done.read_text().split() == ["0", "1", "2", "3", "4"]
    assert (tmp_path / "failed-once").exists()


def test_lag_fails_a_check_and_an_application_is_described_and_deleted(served, tmp_path):
    (tmp_path / "stuck.py").write_text("def handle(data: bytes) -> None:\n    print('in', flush=True)\n    1 / 0\n")
    served.run("stream", "create", "behind")
    served.run("put", "behind", "a", "b", "c", "--key", "k")
    process = consume(served, "behind", "--app", "stuck-cli", "--from", "trim_horizon", "stuck:handle", cwd=tmp_path)
    process.stdout.readline()
    described = served.run("app", "describe", "stuck-cli")
    (facts,) = served.json("app", "describe", "stuck-cli")
    late = served.run("lag", "--app", "stuck-cli", "--fail-above", "0s", exit_code=1)
    stop(process)

    assert "shardId-000000000000" in described
    assert facts["leases"][0]["lag_records"] >= 3 and facts["leases"][0]["checkpoint"] == 1
    assert "behind on behind (limit 0s)" in late
    assert served.run("lag", "--app", "stuck-cli", "--fail-above", "7d") == ""
    assert "stuck-cli" in served.run("app", "list", "-q").split()
    first, second = served.fail("app", "delete", "stuck-cli", exit_code=2)
    assert "no terminal" in first and "--yes" in second
    assert served.run("app", "delete", "stuck-cli", "--yes") == "deleted stuck-cli\n"
    assert "stuck-cli" not in served.run("app", "list", "-q").split()


def test_an_unknown_application_is_not_found(served):
    first, second = served.fail("lag", "--app", "nobody")

    assert "nobody" in first and second.startswith("try:   ")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("x", "--app", "a", "--from", "latest"), "name a handler"),
        (("x", "--app", "a", "--from", "latest", "no_such_module:f"), "no_such_module"),
        (("x", "--app", "a", "--from", "latest", "json:no_such_function"), "no_such_function"),
        (("x", "--app", "a", "--from", "shardId-000000000000:5", "json:dumps"), "one shard alone"),
    ],
)
def test_what_cannot_be_consumed_is_misuse(served, arguments, word):
    first, second = served.fail("consume", *arguments, exit_code=2)

    assert word in first and second.startswith("try:   ")


@pytest.mark.parametrize("what", ["put", "read", "end-to-end"])
def test_bench_measures_a_node_and_leaves_nothing_behind(served, what):
    before = served.run("stream", "list", "-q")
    (facts,) = served.json("bench", what, "--records", "500", "--shards", "2", "--pace", "5000")
    shown = served.run("bench", what, "--records", "200", "--shards", "2", "--durability", "os", "--pace", "5000")

    assert facts["put"]["records_per_second"] > 0 and facts["put"]["p99_ms"] >= facts["put"]["p50_ms"] > 0
    assert "no loss, no repeat" in shown and "page cache before ack" in shown
    assert served.run("stream", "list", "-q") == before


def test_simulate_replays_a_seed_to_the_same_digest():
    command = [sys.executable, "-m", "streamkit.cli", "simulate", "--seed", "7", "--json"]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(2)]
    first, second = (json.loads(run.stdout) for run in runs)

    assert first["violations"] == []
    assert first["digest"] == second["digest"]
    assert first["command"] == "streamkit simulate --seed 7"


def test_positions_are_shown_set_exported_and_taken_back(served, tmp_path):
    served.run("stream", "create", "to-reset", "--shards", "2")
    served.run("put", "to-reset", "--lines", stdin="".join(f'{{"id": {i}}}\n' for i in range(20)))
    (tmp_path / "resets.py").write_text(
        "import sys\n\ndef show(value: dict) -> None:\n    sys.stdout.write(f'{value}\\n')\n    sys.stdout.flush()\n"
    )
    process = consume(served, "to-reset", "--app", "resettable", "--from", "trim_horizon", "resets:show", cwd=tmp_path)
    seen = [process.stdout.readline() for _ in range(20)]
    stop(process)
    assert len(set(seen)) == 20
    (tmp_path / "positions.json").write_text(served.run("app", "export", "resettable"))

    shown = served.run("app", "reset", "resettable", "--to", "trim_horizon", "--dry-run")
    assert "records come again" in shown and "nothing was changed" in shown
    assert served.json("lag", "--app", "resettable")[0]["lag_records"] == 0
    shown = served.run("app", "reset", "resettable", "--to", "trim_horizon")
    assert "streamkit app reset resettable --undo" in shown
    whole = served.json("lag", "--app", "resettable")[0]["lag_records"]
    assert 20 <= whole <= 24, "records, and marks of leaders"
    served.run("app", "skip", "resettable", "--shard", "shardId-000000000000", "--to", "3")
    assert served.json("lag", "--app", "resettable")[0]["lag_records"] < whole
    served.run("app", "reset", "resettable", "--undo")
    assert served.json("lag", "--app", "resettable")[0]["lag_records"] == whole
    *changes, total = served.json("app", "restore", "resettable", str(tmp_path / "positions.json"))
    assert len(changes) == 2 and total["skipped"] == whole
    assert served.json("lag", "--app", "resettable")[0]["lag_records"] == 0
    served.run("app", "pause", "resettable", "--reason", "tests")
    assert served.json("app", "describe", "resettable")[0]["leases"][0]["state"] == "paused"
    served.run("app", "resume", "resettable")
    assert "all promises hold" in served.run("app", "doctor", "resettable")


def test_misuse_of_positions_is_said(served, tmp_path):
    served.run("stream", "create", "not-reset")
    for arguments in (("reset", "nobody"), ("reset", "nobody", "--to", "latest", "--undo")):
        served.fail("app", *arguments, exit_code=2)
    assert "does not exist" in served.fail("app", "reset", "nobody", "--to", "latest")[0]
    (tmp_path / "bad.json").write_text("[")
    assert "is not JSON" in served.fail("app", "restore", "nobody", str(tmp_path / "bad.json"), exit_code=2)[0]
