"""`streamkit serve --replicas N` and `--workers N`: several nodes, one banner, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
import pytest

from tests.cli.conftest import run_command
from tests.examples.nodes import certificate


class LocalCluster:
    def __init__(self, directory, *arguments):
        self.log = directory.with_suffix(".log")
        command = [sys.executable, "-m", "streamkit.cli", "serve", "--data", str(directory), *arguments]
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def next(self):
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return line

    def facts(self):
        return json.loads(self.next())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def ended(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.fixture
def replicas(tmp_path):
    made = LocalCluster(tmp_path / "data", "--replicas", "3", "--port", "0", "--json")
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def test_one_line_says_where_the_nodes_are_and_each_has_a_directory(replicas, tmp_path):
    facts = replicas.facts()

    assert facts["schema"] == "streamkit.cluster.v1"
    assert [node["node"] for node in facts["nodes"]] == ["node-1", "node-2", "node-3"]
    assert [Path(node["data"]) for node in facts["nodes"]] == [tmp_path / "data" / f"node-{n}" for n in (1, 2, 3)]
    for node in facts["nodes"]:
        with urllib.request.urlopen(f"{node['health']}/ready", timeout=10) as answer:
            assert answer.status == 200
    assert replicas.stop() == 0
    assert all(ended(node["pid"]) for node in facts["nodes"])


def test_a_killed_node_comes_back_where_it_was(replicas):
    facts = replicas.facts()
    os.kill(facts["nodes"][1]["pid"], signal.SIGKILL)
    again = replicas.facts()

    assert again["node"] == "node-2" and again["pid"] != facts["nodes"][1]["pid"]
    assert again["native"] == facts["nodes"][1]["native"]
    assert replicas.stop() == 0
    assert ended(again["pid"])


def test_a_killed_supervisor_leaves_nothing_behind(replicas):
    facts = replicas.facts()
    replicas.process.kill()
    replicas.process.wait()

    while not all(ended(node["pid"]) for node in facts["nodes"]):
        continue


def test_a_person_sees_every_node_and_how_to_look(tmp_path):
    made = LocalCluster(tmp_path / "data", "--workers", "2", "--port", "0", "--dev")
    lines = []
    while not lines or not lines[-1].startswith("ready in"):
        lines.append(made.next())

    assert "2 nodes on this machine" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["node-1", "node-2", "data"]
    assert made.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--replicas", "3", "--workers", "2"), "exclude each other"),
        (("--replicas", "3", "--cluster", "etcd://a:1", "--node-id", "a"), "joins another one"),
        (("--replicas", "8"), "1<=x<=7"),
        (("--cluster", "etcd://a:1"), "needs a name"),
        (("--cluster", "http://a:1", "--node-id", "a"), "must begin with etcd://"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, arguments, words):
    done = run_command("serve", "--data", str(tmp_path / "data"), *arguments)
    first, second = done.stderr.decode().splitlines()

    assert done.returncode == 2
    assert first.startswith("error: ") and words in first
    assert second.startswith("try:   ")
    assert not (tmp_path / "data").exists()


def test_a_directory_with_something_else_or_more_nodes_is_not_touched(tmp_path):
    (tmp_path / "more" / "node-4").mkdir(parents=True)
    (tmp_path / "single" / "journal").mkdir(parents=True)

    more = run_command("serve", "--replicas", "3", "--data", str(tmp_path / "more"))
    single = run_command("serve", "--replicas", "3", "--data", str(tmp_path / "single"))

    assert more.returncode == single.returncode == 2
    assert b"node-4 would not be started" in more.stderr
    assert b"'journal'" in single.stderr
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["node-4"]


def test_a_node_that_cannot_start_is_named_with_its_reason(tmp_path):
    (tmp_path / "data" / "node-2").mkdir(parents=True)
    (tmp_path / "data" / "node-2" / "something").write_text("else")
    done = run_command("serve", "--replicas", "2", "--data", str(tmp_path / "data"), "--port", "0", "--dev")
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error:")]

    assert done.returncode == 1
    assert any("is not a streamkit data directory" in line for line in errors)
    assert any(line.startswith("error: node-2 ended with exit code 2 before it was ready") for line in errors)


def test_every_node_answers_the_kinesis_api_and_over_tls_when_there_is_a_certificate(tmp_path):
    file, key = certificate(tmp_path)
    made = LocalCluster(
        tmp_path / "data", "--workers", "2", "--port", "0", "--json", "--certificate", str(file),
        "--certificate-key", str(key),
    )  # fmt: skip
    try:
        nodes = made.facts()["nodes"]
        for url in [node[name] for node in nodes for name in ("http", "https")]:
            client = boto3.client(
                "kinesis", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="a",
                verify=str(file),
            )  # fmt: skip
            assert client.list_streams()["StreamNames"] == []
        assert made.stop() == 0
    finally:
        made.process.kill()
        made.process.wait()
