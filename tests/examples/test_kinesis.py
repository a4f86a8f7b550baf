"""The programs of examples/kinesis that need no JVM, as they are, against a node: boto3, the AWS CLI, JavaScript."""

from __future__ import annotations

import pytest

from tests.examples.nodes import (
    CLIENTS,
    KinesisNode,
    aws,
    environment,
    javascript,
    merge,
    needed,
    number,
    python,
    run,
    split,
)  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with KinesisNode(tmp_path_factory.mktemp("node")) as node:
        yield node


def test_boto3_reads_all_in_order_across_a_split_and_a_merge(node):
    python(node, "boto3_producer.py", "--stream", "resharded", "--shards", "2", "--records", "600")
    split(node, "resharded")
    python(node, "boto3_producer.py", "--stream", "resharded", "--records", "600", "--first", "600")
    merge(node, "resharded")
    python(node, "boto3_producer.py", "--stream", "resharded", "--records", "600", "--first", "1200")

    polled = python(node, "boto3_consumer.py", "--stream", "resharded", "--records", "1800")
    pushed = python(node, "boto3_fan_out.py", "--stream", "resharded", "--records", "1800")

    wanted = "1800 of 1800 records read from 5 shards, 0 twice, 0 out of order"
    assert wanted in polled
    assert wanted in pushed


def test_boto3_speaks_tls(node):
    stored = python(node, "boto3_producer.py", "--stream", "secured", secure=True)

    assert "1000 records stored in 1 shards, 0 put again" in stored
    assert "1000 of 1000 records read" in python(node, "boto3_consumer.py", "--stream", "secured", secure=True)
    assert "1000 of 1000 records read" in python(node, "boto3_fan_out.py", "--stream", "secured", secure=True)


def test_entries_that_are_refused_are_put_again(tmp_path):
    with KinesisNode(tmp_path, {"KINESIS__PUT_THROTTLE": "0.3"}) as node:
        # A share of what each request has for each shard: 64 draws, so that one of them surely comes out.
        many = ("--stream", "throttled", "--records", "4000")
        stored = python(node, "boto3_producer.py", *many, "--keys", "4000", "--shards", "8")
        read = python(node, "boto3_consumer.py", *many)

    assert "4000 records stored" in stored
    assert number(r"(\d+) put again", stored) > 0
    assert "4000 of 4000 records read from 8 shards, 0 twice, 0 out of order" in read


def test_the_command_line_of_aws_calls_everything_that_is_essential(node):
    variables = environment(node) | {"AWS": needed(CLIENTS / "aws", "python")}

    printed = run(["sh", "aws_cli.sh"], variables)

    assert printed.splitlines()[-1] == "all calls answered"
    named = {line.split()[0] for line in printed.splitlines()[:-1]}
    assert named >= {
        "CreateStream", "DeleteStream", "DescribeStream", "DescribeStreamSummary", "ListStreams", "ListShards",
        "GetShardIterator", "GetRecords", "PutRecord", "PutRecords", "SplitShard", "MergeShards", "UpdateShardCount",
        "RegisterStreamConsumer", "DescribeStreamConsumer", "ListStreamConsumers", "DeregisterStreamConsumer",
    }  # fmt: skip
    assert "cli-example" not in aws(node, "kinesis", "list-streams", "--query", "StreamNames")


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_javascript_speaks_http2_for_every_call(node, secure):
    printed = javascript(node, "javascript/roundtrip.js", f"javascript-{secure}", "3000", secure=secure)

    assert "put               3000 of 3000" in printed
    assert "GetRecords        3000 of 3000 from 2 shards" in printed
    assert "SubscribeToShard  3000 of 3000" in printed


def test_a_wrong_secret_is_refused(node):
    variables = environment(node) | {"AWS_SECRET_ACCESS_KEY": "wrong"}

    with pytest.raises(AssertionError, match="InvalidSignatureException"):
        run([needed(CLIENTS / "aws", "python"), "kinesis", "list-streams"], variables)
