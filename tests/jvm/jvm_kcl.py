"""The KCL reads what the KPL wrote; streamkit is all that either of them has."""

from __future__ import annotations

import contextlib

import pytest

from tests.examples.nodes import aws, merge, number, open_shards, split
from tests.jvm.programs import (
    checkpoints,
    eventually,
    java,
    keys,
    last_sequence_numbers,
    produce,
    rows,
    running,
    shards,
)

FAILOVER_MS = "2000"


def worker(node, stream, application, output, *, records, secure=False, fan_out=False, seconds=240):
    """The command of one."""
    arguments = ["--stream", stream, "--application", application, "--worker", output.name, "--output", str(output),
                 "--records", str(records), "--seconds", str(seconds), "--failover-ms", FAILOVER_MS]  # fmt: skip
    return java(node, "kcl-java", "CountRecords", *arguments, *["--fan-out"] * fan_out, secure=secure)


@pytest.mark.parametrize(
    ("fan_out", "secure"), [(False, False), (True, False), (True, True)], ids=["polling", "fan-out", "fan-out-tls"]
)
def test_a_worker_counts_aggregated_records_and_goes_on_from_its_checkpoints(node, tmp_path, fan_out, secure):
    stream = application = f"count-{fan_out}-{secure}"
    aws(node, "kinesis", "create-stream", "--stream-name", stream, "--shard-count", "3")
    stored = produce(node, stream, records=10_000)

    first, second = tmp_path / "first", tmp_path / "second"

    def count(output, expected):
        command = worker(node, stream, application, output, records=expected, fan_out=fan_out, secure=secure)
        with running(node, f"{stream}-{output.name}", command, secure=secure) as program:
            program.wait()

    count(first, 10_000)
    after_the_first = checkpoints(node, application)
    produce(node, stream, records=2_000, first=10_000)
    count(second, 2_000)

    assert number(r"10000 of 10000 records stored as (\d+) records of the stream", stored) < 5_000
    assert sorted(rows(first)) == list(range(10_000))
    assert after_the_first == last_sequence_numbers(first)
    assert sorted(rows(second)) == list(range(10_000, 12_000))


def test_no_record_is_lost_when_a_worker_is_killed_and_shards_are_split_and_merged(node, tmp_path):
    stream = application = "killed"
    before, records = 2_000, 30_000
    aws(node, "kinesis", "create-stream", "--stream-name", stream, "--shard-count", "4")
    produce(node, stream, records=before)
    killed, survivor = tmp_path / "killed", tmp_path / "survivor"
    with contextlib.ExitStack() as programs:

        def begin(name, command):
            return programs.enter_context(running(node, name, command))

        first = begin("worker-1", worker(node, stream, application, killed, records=records))
        # Two workers that create the state of an application at once are one too many for the KCL: the slower gives up.
        eventually(lambda: "Migration3.0" in keys(node, application), "the state of the application", first)
        second = begin("worker-2", worker(node, stream, application, survivor, records=records))
        eventually(lambda: "begin" in first.printed and "begin" in second.printed, "sharing", first, second)
        writing = begin("producer", java(
            node, "kpl-java", "ProduceRecords", "--stream", stream, "--first", str(before), "--records",
            str(records - before), "--per-second", "800", "--endpoint", node.https,
        ))  # fmt: skip
        eventually(lambda: max(rows(killed), default=0) > before, "records as they come", first, second, writing)
        parents = open_shards(node, stream)
        split(node, stream)
        first.kill()
        merge(node, stream)
        written = writing.wait()
        eventually(lambda: set(rows(killed, survivor)) == set(range(records)), "the last record", second, writing)
        leases = checkpoints(node, application)

    assert f"{records - before} of {records - before} records stored" in written
    children = set(open_shards(node, stream)) - set(parents)
    assert len(children) == 3
    assert children <= shards(survivor)
    # What was split and merged is at its end, or was cleaned up after it.
    assert {leases.get(shard, "SHARD_END") for shard in (parents[0], *parents[-2:])} == {"SHARD_END"}


@pytest.mark.parametrize("fan_out", [False, True], ids=["polling", "fan-out"])
def test_no_record_is_lost_when_the_node_is_killed_and_comes_back(node, tmp_path, fan_out):
    stream = application = f"restarted-{fan_out}"
    records, output = 16_000, tmp_path / "counted"
    aws(node, "kinesis", "create-stream", "--stream-name", stream, "--shard-count", "2")
    counting = worker(node, stream, application, output, records=1 << 30, fan_out=fan_out)
    producing = java(node, "kpl-java", "ProduceRecords", "--stream", stream, "--records", str(records),
                     "--per-second", "800", "--endpoint", node.https)  # fmt: skip

    with running(node, f"{stream}-worker", counting) as reader:
        eventually(lambda: "begin" in reader.printed, "a worker with a shard", reader)
        with running(node, f"{stream}-producer", producing) as writer:
            eventually(lambda: max(rows(output), default=0) > 2_000, "records as they come", reader, writer)
            node.end()
            node.start()
            written = writer.wait()
            eventually(lambda: set(rows(output)) == set(range(records)), "the last record", reader, writer)

    assert f"{records} of {records} records stored" in written
