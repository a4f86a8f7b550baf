"""A desk for each test that calls the API within this process; one node process for all tests that use boto3."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass

import boto3
import pytest
from botocore.config import Config

from tests.cli.conftest import run_command
from tests.gateway.kinesis.desk import desk_at, node_in

NUMBERS = itertools.count()


@pytest.fixture
async def node(tmp_path):
    async with node_in(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def desk(node):
    async with desk_at(node) as made:
        yield made


@dataclass
class Served:
    native: str
    http: str

    def boto(self, *, key_id="AK", region="us-east-1", retries=0, **options):
        return boto3.client(
            "kinesis", endpoint_url=self.http, region_name=region, aws_access_key_id=key_id,
            aws_secret_access_key="secret",
            config=Config(retries={"total_max_attempts": retries + 1}, max_pool_connections=20, **options),
        )  # fmt: skip

    def run(self, *arguments):
        done = run_command(*arguments, "--url", self.native)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kinesis")
    command = [
        sys.executable, "-m", "streamkit.cli", "serve", "--data", str(directory / "data"), "--port", "0", "--json"
    ]  # fmt: skip
    with (directory / "log").open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (directory / "log").read_text()
    facts = json.loads(line)
    yield Served(facts["native"], facts["http"])
    process.terminate()
    assert process.wait(30) == 0, (directory / "log").read_text()


@pytest.fixture(scope="session")
def kinesis(served):
    return served.boto()


@pytest.fixture
def stream(kinesis):
    """The name of a new stream of one shard, ACTIVE."""
    name = f"stream-{next(NUMBERS)}"
    kinesis.create_stream(StreamName=name, ShardCount=1)
    wait_active(kinesis, name)
    return name


def wait_active(kinesis, name):
    kinesis.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 200})
