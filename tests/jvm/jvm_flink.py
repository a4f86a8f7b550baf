"""A Flink job moves a stream into another one, in a cluster within its process."""

from __future__ import annotations

import pytest

from tests.examples.nodes import aws, environment, python, run
from tests.jvm.programs import JVM_PATIENCE, java


@pytest.mark.parametrize("source", ["polling", "fan-out"])
def test_a_job_counts_every_record_of_its_input_into_its_output(node, source):
    stream, output = f"input-{source}", f"output-{source}"
    python(node, "boto3_producer.py", "--stream", stream, "--shards", "2", "--records", "3000")
    aws(node, "kinesis", "create-stream", "--stream-name", output, "--shard-count", "2")
    arguments = ["--input-arn", f"arn:aws:kinesis:us-east-1:000000000000:stream/{stream}", "--output", output,
                 "--records", "3000", *["--fan-out"] * (source == "fan-out")]  # fmt: skip

    counted = run(java(node, "flink", "CountJob", *arguments), environment(node), seconds=JVM_PATIENCE)
    moved = python(node, "boto3_consumer.py", "--stream", output, "--records", "3000")

    assert "3000 of 3000 records counted, FINISHED" in counted
    assert "3000 of 3000 records read from 2 shards, 0 twice, 0 out of order" in moved
