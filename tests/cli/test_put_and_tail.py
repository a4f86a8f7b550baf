"""Records in and out through the shell."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import start_serve


def test_a_value_is_put_and_shown_with_its_key(served):
    served.run("stream", "create", "hello")
    shown = served.run("put", "hello", '{"id": 1, "total": 42.5}', "--key", "customer-7")
    line = served.run("tail", "hello")

    assert re.fullmatch(r"shardId-000000000000  \d{56}\n", shown)
    assert re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3}  customer-7  \{"id":1,"total":42.5\}\n', line)


def test_lines_are_put_by_the_key_they_name_and_stay_in_order_for_it(served):
    served.run("stream", "create", "lines", "--shards", "4")
    lines = "".join(json.dumps({"customer": i % 7, "n": i}) + "\n" for i in range(500))
    (summary,) = served.json("put", "lines", "--lines", "--key-from", "data.customer", stdin=lines)
    records = served.json("tail", "lines", "--from", "trim_horizon")

    assert (summary["records"], summary["failed"]) == (500, 0)
    assert sorted(r["data"]["n"] for r in records) == list(range(500))
    for key in range(7):
        mine = [r for r in records if r["key"] == str(key)]
        assert [r["data"]["n"] for r in mine] == list(range(key, 500, 7))
        assert len({r["shard"] for r in mine}) == 1
    assert records == sorted(records, key=lambda r: r["arrived"])


def test_the_last_n_are_the_newest_over_all_shards(served):
    served.run("stream", "create", "newest", "--shards", "3")
    for i in range(4):
        served.run("put", "newest", "--lines", stdin="".join(f"{i}-{j}\n" for j in range(5)))
    shown = served.run("tail", "newest", "-n", "5", "--raw").split()

    assert sorted(shown) == [f"3-{j}" for j in range(5)]
    assert len(served.run("tail", "newest", "-n", "1000", "--raw").split()) == 20
    assert served.run("tail", "newest", "-n", "0") == ""


def test_tail_shows_what_matches_and_says_what_could_not_be_judged(served):
    served.run("stream", "create", "matching", "--shards", "2")
    lines = "".join(json.dumps({"n": n, "total": n * 1.5}) + "\n" for n in range(400))
    served.run("put", "matching", "--lines", stdin=lines)
    served.run("put", "matching", "--lines", "--codec", "bytes", stdin="{no json\n")
    last = served.json("tail", "matching", "-n", "3", "--where", "data.total > 30 AND data.n % 2 = 0")
    every = served.json("tail", "matching", "--from", "trim_horizon", "--where", "data.n < 5")
    refused = "\n".join(served.fail("tail", "matching", "--where", "totl > 3", exit_code=2))

    assert [record["data"]["n"] % 2 for record in last] == [0, 0, 0]
    assert sorted(record["data"]["n"] for record in every) == list(range(5))
    assert 'unknown name "totl" (line 1, column 1)' in refused
    assert "did you mean data.totl?" in refused


def test_a_file_goes_in_and_comes_out_byte_for_byte(served, tmp_path):
    photo = tmp_path / "photo.bin"
    photo.write_bytes(os.urandom(50_000) + b"\n\x00")
    served.run("stream", "create", "photos")
    served.run("put", "photos", "--file", str(photo), "--key", "a", "--codec", "bytes")
    done = subprocess.run(
        [sys.executable, "-m", "streamkit.cli", "tail", "photos", "--raw", "--length-prefixed", "--url", served.url],
        capture_output=True, check=True,
    )  # fmt: skip

    assert done.stdout == len(photo.read_bytes()).to_bytes(4, "big") + photo.read_bytes()


def test_keys_shards_and_positions_choose_what_is_shown(served):
    served.run("stream", "create", "choice", "--shards", "2")
    put = {}
    for key in "abcdef":
        shard, number = served.run("put", "choice", key * 3, "--key", key).split()
        put[key] = (shard, number)
    shard, number = put["c"]
    of_shard = [key for key in "abcdef" if put[key][0] == shard]

    assert served.run("tail", "choice", "--key", "d", "--raw") == "ddd\n"
    assert served.run("tail", "choice", "--shard", shard, "--raw").split() == [k * 3 for k in of_shard]
    from_there = served.run("tail", "choice", "--from", f"{shard}:{number}", "--raw").split()
    assert from_there == [k * 3 for k in of_shard[of_shard.index("c") :]]
    assert served.run("tail", "choice", "--from", "1h", "--raw").split() != []
    assert served.run("tail", "choice", "--from", "latest") == ""
    first, _ = served.fail("tail", "choice", "--shard", "shardId-000000000009")
    assert "has no shard shardId-000000000009" in first


def test_following_shows_what_arrives_and_stops_with_130(served):
    served.run("stream", "create", "live")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamkit.cli", "tail", "live", "-f", "--json", "--url", served.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    served.run("put", "live", "one", "--key", "k")
    seen = [json.loads(process.stdout.readline())["data"]]
    served.run("put", "live", "two", "--key", "k")
    seen.append(json.loads(process.stdout.readline())["data"])
    process.send_signal(signal.SIGINT)

    assert seen == ["one", "two"]
    assert process.wait(30) == 130
    assert process.stderr.read().strip() == ""


def test_a_head_that_closes_the_pipe_ends_tail_quietly(served):
    served.run("stream", "create", "pipe")
    served.run("put", "pipe", "--lines", stdin="".join(f"line {i} {'x' * 100}\n" for i in range(3000)))
    done = subprocess.run(
        f"{sys.executable} -m streamkit.cli tail pipe --from trim_horizon --url {served.url} | head -2; "
        "echo ${PIPESTATUS[0]}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert len(done.stdout.splitlines()) == 3 and done.stdout.splitlines()[2] == "0"
    assert done.stderr == ""


def test_following_goes_on_when_the_node_is_back_and_ends_with_one_reason(tmp_path):
    node = start_serve(tmp_path / "data")
    node.run("stream", "create", "live", "--shards", "3")
    node.run("put", "live", "one", "--key", "k")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamkit.cli", "tail", "live", "-f", "--raw", "--url", node.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "one\n"
    node.run("put", "live", "two", "--key", "k")
    assert process.stdout.readline() == "two\n"           # it follows by now
    node.process.kill()
    node.process.wait()
    others = ("--http-port", "0", "--health-port", "0")
    node = start_serve(tmp_path / "data", "--port", node.url.rpartition(":")[2], *others)
    try:
        node.run("put", "live", "three", "--key", "k")
        assert process.stdout.readline() == "three\n"
        node.run("stream", "delete", "live", "--yes")
        _, errors = process.communicate(timeout=60)
    finally:
        node.process.kill()
        node.process.wait()

    assert process.returncode == 1
    assert [line.split(":")[0] for line in errors.splitlines()] == ["error", "try"]


def test_what_fails_can_be_put_again(served, tmp_path):
    served.run("stream", "create", "small", "--record-bytes-max", "1000")
    served.run("stream", "create", "large")
    failures = tmp_path / "failures.jsonl"
    lines = "short\n" + "x" * 5000 + "\nalso short\n"
    (summary,) = served.json(
        "put", "small", "--lines", "--key", "k", "--failures", str(failures), stdin=lines, exit_code=1
    )
    again = json.loads(failures.read_text())
    served.run("put", "large", "--lines", stdin=failures.read_text())

    assert (summary["records"], summary["failed"]) == (2, 1)
    assert (again["key"], again["code"]) == ("k", "record_too_large")
    assert served.run("tail", "small", "--raw").split("\n") == ["short", "also short", ""]
    assert served.run("tail", "large", "--raw").strip() == "x" * 5000


def test_a_record_that_is_too_large_says_its_size_and_the_limit(served):
    served.run("stream", "create", "tiny", "--record-bytes-max", "100")
    *_, first, second = served.fail("put", "tiny", "y" * 500, "--key", "k", exit_code=2)

    assert first.startswith("error: ") and "100" in first
    assert second.startswith("try:   ")


@pytest.mark.parametrize("value", ["\x1b[31mred", "a\tb", '{"a": "\\u001b[2J"}'])
def test_control_characters_do_not_reach_the_terminal(served, value):
    name = f"control-{abs(hash(value))}"
    served.run("stream", "create", name)
    served.run("put", name, value, "--key", "k\x07")
    line = served.run("tail", name)

    assert not any(ord(c) < 32 and c != "\n" for c in line)


def test_a_json_value_without_the_named_key_is_misuse(served):
    served.run("stream", "create", "keyed")
    first, second = served.fail("put", "keyed", '{"a": 1}', "--key-from", "b", exit_code=2)

    assert "has no b" in first and second.startswith("try:   ")
