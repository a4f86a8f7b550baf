"""Child processes as record processors: every generation, several languages, and children that misbehave."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from streamkit.compat.child import Children
from tests.compat.children import (
    FIRST,
    SECOND,
    THIRD,
    javascript_child,
    noted,
    python_child,
    said,
    shell_child,
    until_noted,
)
from tests.compat.conftest import described, put, worker
from tests.waiting import until

KINDS = {
    "first": lambda folder: python_child(folder, FIRST),
    "second": lambda folder: python_child(folder, SECOND),
    "third": lambda folder: python_child(folder, THIRD),
    "shell": shell_child,
    "javascript": javascript_child,
}


def start(session, command, **options):
    children = Children(command, timeout_s=options.pop("timeout_s", None), grace_s=5)
    children.running = worker(session, children.processor, **options)
    return children.running


@pytest.mark.parametrize("kind", KINDS)
def test_children_of_every_kind_process_a_stream_and_its_split(session, tmp_path, kind):
    """Acceptance: consumer 13, processors of generations 1, 2, 3 under the stdio runner, and others."""
    put(session, 30)

    with start(session, KINDS[kind](tmp_path)):
        until_noted(tmp_path, range(30))
        session.client.split_shard("s", 0).wait()
        put(session, 30, first=30)
        until_noted(tmp_path, range(60))
        ended = "TERMINATE" if kind in ("first", "second") else "shard_ended"
        until(lambda: ended in said(tmp_path))

    numbers = [number for _, number in noted(tmp_path)]
    assert sorted(numbers) == list(range(60)) and sorted(numbers[:30]) == list(range(30))
    words = said(tmp_path)
    assert words.count(ended) == 1 and words.count("shutdown_requested") == 2
    assert words.count({"first": "ZOMBIE", "second": "ZOMBIE"}.get(kind, "lease_lost")) == 2
    if kind == "second":
        assert words.count("InvalidStateException") + words.count("ShutdownException") == 2
    assert all(lease.lag_records == 0 for lease in described(session).leases)


def test_what_a_child_prints_is_told_and_does_no_harm(session, tmp_path, caplog):
    """Acceptance: consumer 13, a child that prints to stdout."""
    caplog.set_level("INFO", "streamkit.compat")
    body = """
    def before(message): print("hello", '{"action": "status"}', '{"no": "action"}'); sys.stderr.write("ouch\\n")
    def during(records): sys.stdout.write("half a line without an end")
    """
    put(session, 5)

    with start(session, python_child(tmp_path, THIRD, body)):
        until_noted(tmp_path, range(5))
        until(lambda: all(lease.lag_records == 0 for lease in described(session).leases))

    assert [number for _, number in noted(tmp_path)] == list(range(5))
    assert "hello" in caplog.text and "half a line without an end" in caplog.text and "ouch" in caplog.text


MISBEHAVIOURS = {
    "dies": "os._exit(3)",
    "is killed": "os.kill(os.getpid(), 9)",
    "answers the wrong status": """print('{"action": "status", "responseFor": "initialize"}', flush=True)""",
    "never answers": "__import__('time').sleep(60)",
    "closes its output": "os.close(1); __import__('time').sleep(60)",
}


@pytest.mark.parametrize("kind", MISBEHAVIOURS)
def test_a_child_that_misbehaves_is_replaced_and_its_shard_goes_on_at_its_checkpoint(session, tmp_path, caplog, kind):
    """Acceptance: consumer 13, one that dies, one that answers the wrong status."""
    body = f"""
    def before(message): append("starts", message.sequence_number + "\\n")
    def during(records):
        if any(record.binary_data == b"12" for record in records) and once("misbehaved"): {MISBEHAVIOURS[kind]}
    """
    put(session, 10)

    with start(session, python_child(tmp_path, THIRD, body), timeout_s=1.5 if kind == "never answers" else None):
        until_noted(tmp_path, range(10))
        until(lambda: described(session).leases[0].checkpoint >= 10)
        put(session, 10, first=10)
        until_noted(tmp_path, range(20))
        until(lambda: described(session).leases[0].lag_records == 0)

    numbers = [number for _, number in noted(tmp_path)]
    assert list(dict.fromkeys(numbers)) == list(range(20)) and numbers[:10] == list(range(10))
    assert all(numbers.count(number) == 1 for number in range(10)), "what was checkpointed does not come again"
    starts = (tmp_path / "starts").read_text().split()
    assert len(starts) == 2 and starts[0] == "TRIM_HORIZON" and starts[1].isdigit()
    assert "child.failed shard=shardId-000000000000 request=processRecords" in caplog.text
    assert all(not alive(int(process_id)) for process_id in (tmp_path / "pids").read_text().split())


def alive(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists() and os.getpid() != process_id


def test_the_other_shards_do_not_notice_a_child_that_always_dies(session, tmp_path):
    session.client.split_shard("s", 0).wait()
    body = """
    def before(message): pass
    def during(records):
        if records[0].binary_data == b"0": os._exit(1)
    """
    put(session, 20)

    with start(session, python_child(tmp_path, THIRD, body)):
        until(lambda: len(pids(tmp_path)) >= 4)
        put(session, 20, first=20)
        until(lambda: sum(not lease.lag_records for lease in described(session).leases) == 2)
        shards = {shard for shard, _ in noted(tmp_path)}
        assert len(shards) == 1, "the good shard's records, and none of the bad one's"

    assert len(noted(tmp_path)) > 5


def pids(folder: Path) -> list[str]:
    return (folder / "pids").read_text().split() if (folder / "pids").exists() else []


def test_a_command_that_is_not_there_is_told_and_tried_again(session, tmp_path, caplog):
    caplog.set_level("ERROR")
    put(session, 1)
    command = tmp_path / "later"

    with start(session, (str(command),)):
        until(lambda: "later cannot be started: no such file or directory" in caplog.text)
        command.write_text("#!/bin/sh\nexec " + " ".join(shell_child(tmp_path)))
        command.chmod(0o755)
        until_noted(tmp_path, range(1))


def test_who_waits_for_a_new_child_can_be_stopped(session, tmp_path, monkeypatch):
    monkeypatch.setattr("streamkit.compat.child._WAIT_FIRST_MS", 60_000.0)
    monkeypatch.setattr("streamkit.compat.child._WAIT_MOST_MS", 60_000.0)
    body = """
    def before(message): pass
    def during(records): os._exit(1)
    """
    put(session, 5)
    running = start(session, python_child(tmp_path, THIRD, body))
    running.start()
    until(lambda: running.running and len(pids(tmp_path)) == 1 and not alive(int(pids(tmp_path)[0])))
    time.sleep(1.5)                        # its lease comes back after a second, and then the wait begins

    began = time.monotonic()
    running.stop(30)

    assert time.monotonic() - began < 15 and len(pids(tmp_path)) <= 2
