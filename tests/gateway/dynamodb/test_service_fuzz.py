"""Any request whatever is answered: with what was asked for, or with an error that DynamoDB has; never with a fault."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.dynamodb import open_dynamodb
from tests.gateway.calling import SeededRandom, StandingClock
from tests.gateway.dynamodb import strategies as those
from tests.gateway.dynamodb.test_races_faults import DEFINITION, KEY, LocalNotes, Table

OPERATIONS = sorted(open_dynamodb(LocalNotes(), StandingClock(), SeededRandom()).operations)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8,
)
KEYS = st.sampled_from([KEY, {"leaseKey": {"S": "other"}}, {"leaseKey": {"N": "1"}}, {}])
TABLES = st.sampled_from(["leases", "leases", "leases", "nowhere", "x", "arn:aws:dynamodb:r:000000000000:table/leases"])
EXPRESSIONS = st.one_of(those.CONDITIONS, those.UPDATES, those.SOUP, st.just("leaseKey = :v"))
COMPARISON = st.fixed_dictionaries({}, optional={
    "ComparisonOperator": st.sampled_from(["EQ", "NE", "IN", "LE", "NULL", "BETWEEN", "CONTAINS", "BEGINS_WITH", "X"]),
    "AttributeValueList": st.lists(those.VALUES, max_size=3), "Exists": st.booleans(), "Value": those.VALUES,
    "Action": st.sampled_from(["PUT", "ADD", "DELETE"]),
})  # fmt: skip
LEGACY = st.dictionaries(those.NAMES, COMPARISON, max_size=3)
MEMBERS = {
    "TableName": TABLES, "Key": KEYS, "Item": KEYS.flatmap(lambda key: those.ITEMS.map(lambda item: {**item, **key})),
    "Expected": LEGACY, "AttributeUpdates": LEGACY, "KeyConditions": LEGACY, "QueryFilter": LEGACY,
    "ScanFilter": LEGACY,
    "ConditionalOperator": st.sampled_from(["AND", "OR"]), "ConditionExpression": EXPRESSIONS,
    "UpdateExpression": EXPRESSIONS, "FilterExpression": EXPRESSIONS, "KeyConditionExpression": EXPRESSIONS,
    "ProjectionExpression": st.sampled_from(["a", "a, b.c[0]", "#n", "a, a.b", ""]),
    "ExpressionAttributeNames": st.just({"#n": "leaseOwner"}),
    "ExpressionAttributeValues": st.dictionaries(st.sampled_from([":v", ":w", ":l"]), those.VALUES, max_size=3),
    "ReturnValues": st.sampled_from(["NONE", "ALL_OLD", "ALL_NEW", "UPDATED_OLD", "UPDATED_NEW"]),
    "ReturnValuesOnConditionCheckFailure": st.sampled_from(["ALL_OLD", "NONE"]),
    "ReturnConsumedCapacity": st.sampled_from(["TOTAL", "INDEXES", "NONE"]), "AttributesToGet": st.just(["a", "b"]),
    "IndexName": st.sampled_from(["by-owner", "gone"]), "Limit": st.integers(-1, 3), "ExclusiveStartKey": KEYS,
    "Segment": st.integers(-1, 2), "TotalSegments": st.integers(0, 2), "ScanIndexForward": st.booleans(),
    "Select": st.sampled_from(["COUNT", "ALL_ATTRIBUTES", "SPECIFIC_ATTRIBUTES"]), "ConsistentRead": st.booleans(),
    "RequestItems": st.dictionaries(TABLES, st.one_of(
        st.lists(KEYS.map(lambda key: {"DeleteRequest": {"Key": key}}) | KEYS.map(
            lambda key: {"PutRequest": {"Item": key}}
        ), max_size=3),
        st.fixed_dictionaries({"Keys": st.lists(KEYS, max_size=3)}), JUNK,
    ), max_size=2),
    "KeySchema": st.just(DEFINITION["KeySchema"]) | JUNK, "Tags": JUNK, "TagKeys": JUNK,
    "AttributeDefinitions": st.just(DEFINITION["AttributeDefinitions"]) | JUNK, "GlobalSecondaryIndexUpdates": JUNK,
    "BillingMode": st.sampled_from(["PAY_PER_REQUEST", "PROVISIONED"]), "ProvisionedThroughput": JUNK,
    "ResourceArn": st.sampled_from(["arn:aws:dynamodb:us-east-1:000000000000:table/leases", "x"]),
    "TimeToLiveSpecification": JUNK, "PointInTimeRecoverySpecification": JUNK, "ExclusiveStartTableName": st.text(),
}  # fmt: skip
ACTIONS = st.sampled_from(["Put", "Update", "Delete", "ConditionCheck", "Get"])


def body_of(names, draw):
    return {name: draw(JUNK) if draw(st.integers(0, 19)) == 0 else draw(MEMBERS[name]) for name in names}


@st.composite
def bodies(draw):
    """Mostly sound members, some of them junk."""
    names = draw(st.lists(st.sampled_from(sorted(MEMBERS)), max_size=6, unique=True))
    body = body_of({*names, "TableName"} | ({"Key"} if draw(st.booleans()) else set()), draw)
    if draw(st.integers(0, 4)) == 0:
        inner = sorted({"TableName", "Key", "ConditionExpression", "UpdateExpression", "Item", *names} & set(MEMBERS))
        body["TransactItems"] = [
            {draw(ACTIONS): body_of(inner[: draw(st.integers(0, 6))], draw)} for _ in range(draw(st.integers(0, 3)))
        ]
    return body


@pytest.fixture(scope="module")
def served():
    with asyncio.Runner() as runner:
        table = Table()
        owned = [*DEFINITION["AttributeDefinitions"], {"AttributeName": "leaseOwner", "AttributeType": "S"}]
        runner.run(table.call("CreateTable", TableName="leases", **{**DEFINITION, "AttributeDefinitions": owned},
            GlobalSecondaryIndexes=[{
                "IndexName": "by-owner", "KeySchema": [{"AttributeName": "leaseOwner", "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "ALL"},
            }], DeletionProtectionEnabled=True,
        ))  # fmt: skip
        yield runner, table


@pytest.mark.fuzz
@pytest.mark.parametrize("operation", OPERATIONS)
@given(body=bodies())
def test_no_request_is_a_fault(served, operation, body):
    runner, table = served
    status, answer = runner.run(table.call(operation, **body))

    assert status in (200, 400), (status, answer)
    assert status == 200 or answer["__type"].count("#") == 1


@pytest.mark.fuzz
@given(body=JUNK, operation=st.sampled_from(OPERATIONS))
def test_no_junk_is_a_fault(served, body, operation):
    runner, table = served
    if not isinstance(body, dict):
        body = {"TransactItems": body, "RequestItems": body, "TableName": body, "Key": body, "ResourceArn": body}
    status, _ = runner.run(table.call(operation, **body))
    assert status in (200, 400)
