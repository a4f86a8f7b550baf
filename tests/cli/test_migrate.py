"""streamkit app import: the KCL's lease table, from a file and from this node's own DynamoDB face."""

from __future__ import annotations

import json

import boto3
import pytest

from streamkit.testing import Node
from tests.cli.conftest import run_command


@pytest.fixture
def node():
    with Node(kinesis=True) as made:
        made.create_stream("orders", shards=2)
        yield made


@pytest.fixture
def dynamodb(node):
    return boto3.client(
        "dynamodb", endpoint_url=node.kinesis_url, region_name="us-east-1", aws_access_key_id="any",
        aws_secret_access_key="any",
    )  # fmt: skip


def numbers(node):
    """Shard → sequence numbers of its records."""
    with node.producer("orders") as producer:
        results = [producer.put(n, key=f"k{n % 7}") for n in range(40)]
        found: dict[str, list[str]] = {}
        for result in results:
            found.setdefault(result.result(10).shard, []).append(result.result(10).sequence_number)
    return found


def lease(shard, checkpoint, **more):
    """As the KCL writes it."""
    return {
        "leaseKey": {"S": shard}, "leaseCounter": {"N": "12"}, "checkpoint": {"S": checkpoint},
        "checkpointSubSequenceNumber": {"N": "0"}, "ownerSwitchesSinceCheckpoint": {"N": "0"},
        "startingHashKey": {"S": "0"}, "endingHashKey": {"S": "1"}, "throughputKBps": {"N": "0.000000"}, **more,
    }  # fmt: skip


def command(node, *arguments, exit_code=0):
    done = run_command("app", "import", *arguments, "--url", node.url)
    assert done.returncode == exit_code, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def test_a_table_of_this_nodes_own_dynamodb_face_is_taken_over(node, dynamodb):
    """The items of a KCL 3, as it leaves them: leases, its leader's lock, and what its workers measured."""
    (first, of_first), (second, of_second) = sorted(numbers(node).items())
    dynamodb.create_table(
        TableName="billing", KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}], BillingMode="PAY_PER_REQUEST",
    )  # fmt: skip
    for item in (
        lease(first, of_first[4], leaseOwner={"S": "worker-1"}), lease(second, of_second[-1]),
        {"leaseKey": {"S": "Migration3.0"}, "mv": {"N": "1"}, "entityType": {"S": "COORDINATOR_STATE"}},
        {"leaseKey": {"S": "worker-1"}, "entityType": {"S": "WORKER_METRIC_STATS"}, "ms": {"M": {}}},
    ):
        dynamodb.put_item(TableName="billing", Item=item)
    arguments = ("billing", "--kcl-table", f"{node.kinesis_url}/billing", "--stream", "orders")

    planned, told = command(node, *arguments, "--dry-run")
    assert "nothing was changed" in told and "1 leases were held by workers of the KCL" in told
    assert run_command("app", "describe", "billing", "--url", node.url).returncode == 1
    done, _ = command(node, *arguments)

    assert planned == done and "GOES ON AT  BEHIND" in done.splitlines()[0]
    assert f"…{of_first[4][-12:]}" in done
    behind = {shard.shard: shard.records for shard in node.application("billing").lag.shards}
    assert behind == {first: len(of_first) - 5, second: 0}


def test_a_file_is_taken_over_and_told_as_json(node, tmp_path):
    (first, of_first), (second, _) = sorted(numbers(node).items())
    file = tmp_path / "leases.json"
    file.write_text(json.dumps({"Items": [lease(first, of_first[0]), lease(second, "TRIM_HORIZON")]}))

    printed, _ = command(node, "billing", "--kcl-table", str(file), "--stream", "orders", "--json")

    told = json.loads(printed)
    assert (told["schema"], told["application"], told["done"]) == ("streamkit.import.v1", "billing", True)
    assert [(row["shard"], row["sub_sequence"]) for row in told["leases"]] == [(first, 0), (second, 0)]
    assert told["leases"][0]["checkpoint"] == of_first[0] and told["leases"][0]["behind"] == len(of_first) - 1
    _, refused = command(node, "billing", "--kcl-table", str(file), "--stream", "orders", exit_code=1)
    assert 'error: application "billing" exists' in refused and "try:" in refused


@pytest.mark.parametrize(
    ("checkpoint", "more", "word"),
    [
        ("49590383974501928346501928374650192837465", (), "1 of 2 shards cannot go on here: orders/shardId-0"),
        ("AT_TIMESTAMP", (), "a time that the table does not hold"),
        ("AT_TIMESTAMP", ("--from", "shardId-000000000000:5"), "--from takes trim_horizon, latest or a time"),
    ],
)
def test_what_cannot_be_mapped_is_named_and_nothing_is_made(node, tmp_path, checkpoint, more, word):
    first, second = sorted(numbers(node))
    file = tmp_path / "leases.json"
    file.write_text(json.dumps([lease(first, checkpoint), lease(second, "LATEST")]))

    _, told = command(node, "billing", "--kcl-table", str(file), "--stream", "orders", *more, exit_code=2)

    assert word in told
    assert run_command("app", "list", "-q", "--url", node.url).stdout == b""


def test_a_time_helps_where_the_table_holds_none(node, tmp_path):
    first, second = sorted(numbers(node))
    file = tmp_path / "leases.json"
    file.write_text(json.dumps([lease(first, "AT_TIMESTAMP"), lease(second, "LATEST")]))

    command(node, "billing", "--kcl-table", str(file), "--stream", "orders", "--from", "2h")

    behind = {shard.shard: shard.records for shard in node.application("billing").lag.shards}
    assert behind[first] > 5 and behind[second] == 0


@pytest.mark.parametrize("source", ["http://127.0.0.1:1/", "{kinesis}/no-such-table", "/no/such/file"])
def test_a_source_that_is_none_is_told(node, source):
    _, told = command(
        node, "billing", "--kcl-table", source.format(kinesis=node.kinesis_url), "--stream", "orders",
        exit_code=2 if source.endswith("/") else 1,
    )  # fmt: skip

    assert told.startswith("error: ") and "\ntry:" in told
