"""amazon_kclpy: the MultiLangDaemon and a record processor in Python."""

from __future__ import annotations

import pytest

from tests.examples.nodes import KCLPY, environment, needed, python, run
from tests.jvm.programs import JVM_PATIENCE, checkpoints, last_sequence_numbers, rows


@pytest.mark.parametrize("fan_out", [False, True], ids=["polling", "fan-out"])
def test_a_record_processor_in_python_counts_and_goes_on_from_its_checkpoints(node, tmp_path, fan_out):
    stream = application = f"python-{fan_out}"
    python(node, "boto3_producer.py", "--stream", stream, "--shards", "2", "--records", "1000")
    first, second = tmp_path / "first", tmp_path / "second"

    def daemon(output, records):
        return run([needed(KCLPY, "kclpy"), "kclpy/run.py", "--stream", stream, "--application", application,
                    "--output", str(output), "--records", str(records), "--seconds", "240",
                    *["--fan-out"] * fan_out], environment(node), seconds=JVM_PATIENCE)  # fmt: skip

    counted = daemon(first, 1_000)
    after_the_first = checkpoints(node, application)
    python(node, "boto3_producer.py", "--stream", stream, "--records", "500", "--first", "1000")
    daemon(second, 500)

    assert "1000 of 1000 records counted from 2 shards" in counted
    assert sorted(rows(first)) == list(range(1_000))
    assert after_the_first == last_sequence_numbers(first)
    assert sorted(rows(second)) == list(range(1_000, 1_500))
