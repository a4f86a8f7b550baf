"""Bad input, each kind of it against a real node: a typed error or one error:/try: pair, and the node stays up."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import streamkit
from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.errors import Closed
from streamkit.model.stream import StreamConfig
from streamkit.node import Node
from streamkit.runtime.real import real_runtime
from tests.broker.conftest import batch_of, config
from tests.cli.conftest import ServedNode, run_command, start_serve
from tests.small_disk import small_disk

__all__ = ["small_disk"]                     # a fixture

DAC = "--bounding-set=-dac_override,-dac_read_search"      # with these, root ignores modes


def pair(printed: str) -> tuple[str, str]:
    """The error and what to try, which must be all that was said besides log lines."""
    lines = [line for line in printed.splitlines() if not line.startswith("{")]
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("try:   "), printed
    assert "defect" not in lines[0] and "Traceback" not in printed
    return lines[0], lines[1]


def refuse(*arguments: str, before: tuple[str, ...] = ()) -> str:
    """The first line of what the command said when it would not do it."""
    command = [*before, sys.executable, "-m", "streamkit.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    return pair(done.stderr)[0]


def stop(node: ServedNode, with_signal: int = signal.SIGTERM) -> None:
    node.process.send_signal(with_signal)
    node.process.wait(30)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a node that acknowledged 2,000 records over several segments, and was killed."""
    directory = tmp_path_factory.mktemp("kept") / "data"
    os.environ["STREAMKIT_STORAGE__SEGMENT_BYTES"] = str(1 << 20)
    try:
        node = start_serve(directory)
    finally:
        del os.environ["STREAMKIT_STORAGE__SEGMENT_BYTES"]
    node.run("stream", "create", "orders")
    lines = "".join(f"{i} {os.urandom(600).hex()}\n" for i in range(2_000))
    node.run("put", "orders", "--lines", "--key", "k", stdin=lines)
    stop(node, signal.SIGKILL)
    return directory


@pytest.fixture
def copied(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "data"))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def everything_is_there(directory: Path) -> None:
    node = start_serve(directory)
    try:
        shown = node.run("tail", "orders", "--from", "trim_horizon", "--raw").splitlines()
        assert [int(line.split()[0]) for line in shown] == list(range(2_000))
        node.run("put", "orders", "one more", "--key", "k")
    finally:
        stop(node)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("k", "v" * 2_000, "the record has 20"),
        ("", "v", "a key has 1..1024 bytes, got 0"),
        ("k" * 1_025, "v", "a key has 1..1024 bytes, got 1025"),
    ],
    ids=["a record too large", "an empty key", "an over-long key"],
)
def test_what_a_stream_does_not_take_is_refused_alone(served, key, value, says):
    served.run("stream", "create", f"takes-{len(key)}", "--record-bytes-max", "1500")
    first, _ = served.fail("put", f"takes-{len(key)}", value, "--key", key, exit_code=2)

    assert says in first and value not in first
    served.run("put", f"takes-{len(key)}", "fits", "--key", "k")


def test_an_unknown_stream_or_shard_is_named_with_a_near_miss(served):
    served.run("stream", "create", "unknown-things")
    for command in (["put", "unknown-thing", "v"], ["tail", "unknown-thing"], ["stream", "describe", "unknown-thing"]):
        assert 'did you mean "unknown-things"?' in served.fail(*command)[0]
    for option in (["--shard", "shardId-000000000007"], ["--from", "shardId-000000000007:1"]):
        assert "has no shard shardId-000000000007" in served.fail("tail", "unknown-things", *option)[0]


def test_a_closed_data_directory_says_closed(tmp_path):
    node = streamkit.open(str(tmp_path / "data"))
    node.close()

    with pytest.raises(Closed, match="the session was closed"):
        node.producer("orders")
    with pytest.raises(Closed, match="the session was closed"):
        node.reader("orders", start="trim_horizon")


def test_a_foreign_data_directory_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    assert "holds 'notes.txt'" in refuse("serve", "--data", str(tmp_path), "--port", "0")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_the_second_of_two_brokers_on_one_directory_is_refused(served):
    said = refuse("serve", "--data", str(served.directory), "--port", "0")

    assert f"held by process {served.process.pid}" in said
    served.run("doctor", "--ready")


GARBAGE = {
    "a 1 GiB length": struct.pack("<IBBHI", 1 << 30, 1, 0, 0, 0),
    "noise": b"\xde\xad\xbe\xef" * 100,
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a wrong protocol version": struct.pack("<IBBHI", 8 + 10, 1, 0, 10, 0) + bytes.fromhex("94015a63a474657374c0")[:10],
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_on_the_port_is_answered_and_the_node_stays_up(served, data):
    host, _, port = served.url.removeprefix("streamkit://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece

    assert b"protocol_mismatch" in answer or answer.startswith(b"HTTP/1.1 400 ")
    served.run("doctor", "--ready")


def test_half_frames_and_slow_connections_end_while_others_are_served(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMKIT_LISTEN__NATIVE__GREETING_SECONDS", "0.2")
    node = start_serve(tmp_path / "data", "--dev")
    host, _, port = node.url.removeprefix("streamkit://").partition(":")
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(b"\x20\x00")
        node.run("put", "orders", "among them", "--key", "k")
        for connection in slow:
            while connection.recv(4096):
                pass
        assert node.run("tail", "orders", "--raw") == "among them\n"
    finally:
        for connection in slow:
            connection.close()
        stop(node)


def test_the_http_port_taken_for_the_native_one_is_told_so(served):
    health = served.health.removeprefix("http://")

    assert "speaks HTTP" in refuse("stream", "list", "--url", f"streamkit://{health}")


def test_a_corrupt_segment_whose_copy_is_in_the_journal_is_made_whole(tmp_path):
    node = start_serve(tmp_path / "data", "--dev")
    node.run("put", "orders", "--lines", "--key", "k", stdin="".join(f"{i}\n" for i in range(100)))
    stop(node, signal.SIGKILL)
    for file in (tmp_path / "data").rglob("*.log"):
        flip(file, file.stat().st_size - 20)
    again = start_serve(tmp_path / "data")
    try:
        shown = again.run("tail", "orders", "--from", "trim_horizon", "--raw").split()
    finally:
        stop(again)

    assert shown == [str(i) for i in range(100)]


def test_a_corrupt_sealed_segment_is_named_and_never_guessed_at(copied):
    sealed = min((f for f in copied.rglob("*.log") if f.stat().st_size > 500_000), key=lambda file: file.name)
    flip(sealed, sealed.stat().st_size // 2)
    node = start_serve(copied)
    try:
        done = run_command("tail", "orders", "--from", "trim_horizon", "--raw", "--url", node.url)
        said = pair(done.stderr.decode())[0] if done.returncode else ""
        seen = [int(line.split()[0]) for line in done.stdout.splitlines()]
        assert seen == list(range(len(seen)))                                # up to the damage, nothing made up
        # Small batches have a copy in the journal, and the segment was made whole.
        assert len(seen) == 2_000 or f"{sealed.name} is damaged at byte" in said
        assert node.run("tail", "orders", "-n", "1", "--raw").startswith("1999 ")
        node.run("put", "orders", "one more", "--key", "k")
    finally:
        stop(node)


@pytest.mark.parametrize("harm", ["corrupt", "truncated", "removed"])
def test_an_index_is_only_a_cache(copied, harm):
    found = [file for file in copied.rglob("*.idx") if file.stat().st_size]
    assert found
    for file in found:
        if harm == "corrupt":
            flip(file, file.stat().st_size // 2)
        elif harm == "truncated":
            os.truncate(file, file.stat().st_size // 2)
        else:
            file.unlink()

    everything_is_there(copied)


@pytest.mark.parametrize("harm", ["truncated", "emptied", "removed", "damaged"])
def test_a_truncated_or_lost_journal_loses_nothing_that_segments_hold(copied, harm):
    for file in (copied / "journal").iterdir():
        if harm == "removed":
            file.unlink()
        elif harm == "damaged":
            flip(file, 100_000)
        else:
            os.truncate(file, 0 if harm == "emptied" else file.stat().st_size // 3)

    everything_is_there(copied)


@pytest.mark.parametrize("name", ["node.id", "metadata.sqlite"])
def test_a_damaged_identity_or_catalogue_stops_the_start_with_its_name(copied, name):
    for extra in copied.glob("metadata.sqlite-*"):
        extra.unlink()
    (copied / name).write_bytes(b"\xff" * 8192)

    assert name in refuse("serve", "--data", str(copied), "--port", "0")


def test_a_full_disk_refuses_puts_by_name_and_keeps_what_it_acknowledged(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMKIT_STORAGE__FREE_BYTES_MIN", str(16 << 20))
    monkeypatch.setenv("STREAMKIT_STORAGE__SEGMENT_BYTES", str(4 << 20))
    node = start_serve(small_disk / "data")
    failures = tmp_path / "failures.jsonl"
    try:
        node.run("stream", "create", "orders")
        lines = "".join(f"{i} {os.urandom(600).hex()}\n" for i in range(75_000))
        (summary,) = node.json(
            "put", "orders", "--lines", "--key", "k", "--timeout", "2", "--failures", str(failures), stdin=lines,
            exit_code=1,
        )  # fmt: skip
        assert summary["records"] + summary["failed"] == 75_000 and summary["failed"]
        failed = [json.loads(line) for line in failures.read_text().splitlines()]
        assert len(failed) == summary["failed"]
        assert "puts are refused below 16 MiB" in failed[0]["error"]
        shown = node.run("tail", "orders", "--from", "trim_horizon", "--raw").splitlines()
        assert [int(line.split()[0]) for line in shown] == list(range(len(shown)))
        assert len(shown) >= summary["records"]
        node.run("stream", "delete", "orders", "--yes")
        for _ in range(50):                          # the node looks at its disk now and then
            if run_command("stream", "create", "again", "--url", node.url).returncode == 0:
                break
        node.run("put", "again", "there is room", "--key", "k")
    finally:
        stop(node)


class BackwardClock:
    """The real clocks, but the time of day loses an hour with every look at it."""

    def __init__(self) -> None:
        self._real = real_runtime().clock
        self._lost_ms = 0

    def now_ms(self) -> int:
        self._lost_ms += 3_600_000
        return self._real.now_ms() - self._lost_ms

    def monotonic_ms(self) -> int:
        return self._real.monotonic_ms()


async def test_a_clock_running_backwards_changes_neither_order_nor_what_is_kept(tmp_path):
    runtime = dataclasses.replace(real_runtime(), clock=BackwardClock())
    node = Node(config(), runtime, data_dir=str(tmp_path / "data"))
    await node.start()
    try:
        async with AsyncClient(node.addresses.native) as client:
            await client.create_stream("orders", StreamConfig(shards=1))
            (shard,) = (await client.describe_stream("orders")).shards
            receipts = [await client.put_batch(shard, batch_of(b"%d" % i)) for i in range(20)]
            fetched = await client.fetch(shard, 0, wait_ms=0)
    finally:
        await node.stop(2)
    batches = [Batch(raw, None, 0) for raw in fetched.batches]
    records = [bytes(record.data) for batch in batches if not batch.is_control for record in batch]
    times = [receipt.append_time_ms for receipt in receipts]

    assert records == [b"%d" % i for i in range(20)]
    assert times == sorted(times)
    assert [r.base_sequence for r in receipts] == sorted(r.base_sequence for r in receipts)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root ignores modes without setpriv")
@pytest.mark.parametrize("what", [".", "journal", "super", "node.id", "metadata.sqlite", "shards"])
def test_no_permission_names_the_path_and_whose_it_should_be(copied, what):
    place = copied / what
    before = ("setpriv", DAC) if os.geteuid() == 0 else ()
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        said = refuse("serve", "--data", str(copied), "--port", "0", before=before)
    finally:
        place.chmod(mode)

    assert str(place.resolve()) in said
    assert "permission denied" in said or "unable to open" in said
    assert "Errno" not in said and "disk failed" not in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[streams]\nshard = 1\n", 'line 2: [streams] has no "shard"; did you mean shards?'),
        ("[stroage]\nsegment_bytes = 5\n", 'there is no section "stroage"; did you mean storage?'),
        ("[streams]\nshards = 0\n", "line 2: streams.shards must be 1..10000, got 0"),
        ("[streams]\nshards = \"four\"\n", "line 2: streams.shards must be a whole number, got 'four'"),
        ("not toml", "line 1: expected '='"),
    ],
    ids=["an unknown key", "an unknown section", "an impossible value", "a wrong type", "no toml"],
)
def test_a_configuration_that_cannot_work_starts_nothing(tmp_path, text, says):
    file = tmp_path / "streamkit.toml"
    file.write_text(text)
    done = run_command("serve", "--config", str(file), "--data", str(tmp_path / "data"), "--port", "0")
    first, second = pair(done.stderr.decode())

    assert done.returncode == 2 and says in first
    assert not (tmp_path / "data").exists()
    step = second.removeprefix("try:   streamkit ").split()
    if second.startswith("try:   streamkit config"):
        assert run_command(*step).returncode == 0, "what is suggested works"


def test_json_errors_carry_the_same_words(served):
    done = run_command("tail", "no-such-stream", "--json", "--url", served.url)
    error = json.loads(done.stderr)["error"]

    assert (error["code"], error["try"]) == ("stream_not_found", "streamkit stream list")
    assert done.stdout == b""
