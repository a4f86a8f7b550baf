"""`streamkit serve`, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.cli.conftest import run_command, start_serve


def test_the_ready_line_says_where_and_health_answers(served):
    with urllib.request.urlopen(f"{served.health}/ready", timeout=10) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{served.health}/metrics", timeout=10) as answer:
        assert b"streamkit_" in answer.read()


def test_a_person_sees_where_it_listens_and_keeps_data(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "streamkit.cli", "serve", "--dev", "--data", str(tmp_path / "data"), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    while not lines or not lines[-1].startswith("ready in"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    process.send_signal(signal.SIGINT)

    assert process.wait(30) == 0
    assert lines[0].startswith("streamkit ") and "dev: streams are made on first put" in lines[0]
    assert lines[1].startswith("  native   streamkit://127.0.0.1:")
    assert any(line.startswith("  data ") and "on disk before it is acknowledged" in line for line in lines)
    assert process.stderr.read() == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_it_will_not_listen_for_others_without_being_told(tmp_path, host):
    done = run_command("serve", "--data", str(tmp_path / "data"), "--listen", host)
    first, second = done.stderr.decode().splitlines()

    assert done.returncode == 2
    assert first.startswith(f"error: will not listen on {host}:7440 without TLS and login")
    assert "--accept-insecure" in second
    assert not (tmp_path / "data").exists()


def test_accept_insecure_is_announced(tmp_path):
    node = start_serve(tmp_path / "data", "--listen", "0.0.0.0", "--accept-insecure")
    node.process.terminate()
    node.process.wait(30)

    assert "listener.insecure" in node.log.read_text()


def test_a_second_node_on_the_directory_is_refused_with_the_firsts_pid(served):
    done = run_command("serve", "--data", str(served.directory), "--port", "0")
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith(("error:", "try:"))]

    assert done.returncode == 1
    assert len(errors) == 2 and str(served.process.pid) in errors[0]


def test_without_dev_the_data_directory_must_be_named():
    done = run_command("serve", "--port", "0")

    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error: no data directory is named, and only --dev chooses one",
        "try:   streamkit serve --data ./data, or streamkit serve --dev",
    ]


def test_a_mistake_in_the_configuration_is_one_line_with_place_and_suggestion(tmp_path):
    file = tmp_path / "streamkit.toml"
    file.write_text("[node]\n\n[streams]\nretension_hours = 24\n")
    done = run_command("serve", "--config", str(file), "--data", str(tmp_path / "data"))
    first, second = done.stderr.decode().splitlines()

    assert done.returncode == 2
    assert "line 4" in first and "did you mean retention_hours?" in first
    assert second.startswith("try:   streamkit config explain")


def test_a_directory_without_permission_is_one_line(tmp_path):
    locked = tmp_path / "file"
    locked.write_text("not a directory")
    done = run_command("serve", "--data", str(locked / "data"), "--port", "0", "--json")
    errors = [json.loads(line) for line in done.stderr.decode().splitlines() if '"streamkit.error.v1"' in line]

    assert done.returncode == 1
    assert len(errors) == 1 and errors[0]["error"]["code"] != "internal"


def test_a_killed_node_starts_again_with_its_streams(tmp_path):
    node = start_serve(tmp_path / "data")
    node.run("stream", "create", "orders", "--shards", "2")
    node.process.kill()
    node.process.wait()
    again = start_serve(tmp_path / "data")
    try:
        assert [line["name"] for line in again.json("stream", "list")] == ["orders"]
    finally:
        os.kill(again.process.pid, signal.SIGTERM)
        again.process.wait(30)
