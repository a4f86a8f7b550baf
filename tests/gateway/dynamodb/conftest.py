"""One node with the DynamoDB service for a module's tests; each test has tables of its own."""

import itertools

import pytest

from streamkit.gateway.dynamodb import open_dynamodb
from streamkit.runtime.real import real_runtime
from tests.gateway.dynamodb.face import serving

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    runtime = real_runtime()
    directory = str(tmp_path_factory.mktemp("node") / "data")
    with serving(directory, lambda client: [open_dynamodb(client, runtime.clock, runtime.random)]) as made:
        yield made


@pytest.fixture(scope="module")
def dynamodb(face):
    return face.boto("dynamodb")


@pytest.fixture
def table(dynamodb):
    """The name of a new table with the hash key leaseKey."""
    name = f"table-{next(NUMBERS)}"
    dynamodb.create_table(
        TableName=name, KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}], BillingMode="PAY_PER_REQUEST",
    )  # fmt: skip
    return name
