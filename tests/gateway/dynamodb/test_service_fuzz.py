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
KEYS = st.sampled_from([*[KEY, {"leaseKey": {"S": "other"}}] * 5, {"leaseKey": {"N": "1"}}, {}])
TABLES = st.sampled_from(["leases"] * 12 + ["nowhere", "x", "arn:aws:dynamodb:r:000000000000:table/leases"])
CONDITIONS = st.one_of(those.CONDITIONS, those.CONDITIONS, those.UPDATES, those.SOUP, st.just("leaseKey = :v"))
UPDATES = st.one_of(those.UPDATES, those.UPDATES, those.CONDITIONS, those.SOUP)
KEY_CONDITIONS = st.sampled_from(["leaseKey = :v"] * 4 + ["leaseOwner = :v", "leaseKey > :v", "a = :v"]) | CONDITIONS
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
    "ConditionalOperator": st.sampled_from(["AND", "OR"]), "ConditionExpression": CONDITIONS,
    "UpdateExpression": UPDATES, "FilterExpression": CONDITIONS, "KeyConditionExpression": KEY_CONDITIONS,
    "ProjectionExpression": st.sampled_from(["a", "a, b.c[0]", "#n", "a, a.b", ""]),
    "ExpressionAttributeNames": st.just({"#n": "leaseOwner"}),
    "ExpressionAttributeValues": st.just({":v": {"S": "other"}}) | st.fixed_dictionaries(
        {":v": st.just({"S": "other"}) | those.VALUES}, optional={":w": those.VALUES, ":l": those.VALUES}
    ),
    "ReturnValues": st.sampled_from(["NONE", "ALL_OLD", "ALL_NEW", "UPDATED_OLD", "UPDATED_NEW"]),
    "ReturnValuesOnConditionCheckFailure": st.sampled_from(["ALL_OLD", "NONE"]),
    "ReturnConsumedCapacity": st.sampled_from(["TOTAL", "INDEXES", "NONE"]), "AttributesToGet": st.just(["a", "b"]),
    "IndexName": st.sampled_from(["by-owner", "gone"]), "Limit": st.integers(-1, 3), "ExclusiveStartKey": KEYS,
    "Segment": st.integers(-1, 2), "TotalSegments": st.integers(0, 3), "ScanIndexForward": st.booleans(),
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
_VALUES = "ExpressionAttributeValues ExpressionAttributeNames"
_WRITE = f"ConditionExpression {_VALUES} Expected ConditionalOperator ReturnValuesOnConditionCheckFailure ReturnValues"
_READ = f"{_VALUES} FilterExpression ProjectionExpression Limit ExclusiveStartKey Select ConsistentRead IndexName"
WANTED = {                                 # what most requests of an operation hold, and what some do
    "GetItem": ("TableName Key", f"ProjectionExpression AttributesToGet ConsistentRead {_VALUES}"),
    "PutItem": ("TableName Item", _WRITE), "DeleteItem": ("TableName Key", _WRITE),
    "UpdateItem": ("TableName Key", f"UpdateExpression AttributeUpdates {_WRITE}"),
    "Query": ("TableName KeyConditionExpression ExpressionAttributeValues", f"KeyConditions QueryFilter {_READ}"),
    "Scan": ("TableName", f"Segment TotalSegments ScanFilter ConditionalOperator {_READ}"),
    "BatchGetItem": ("RequestItems", "ReturnConsumedCapacity"), "BatchWriteItem": ("RequestItems", ""),
    "TransactWriteItems": ("TransactItems", "ReturnConsumedCapacity"), "TransactGetItems": ("TransactItems", ""),
    "CreateTable": ("TableName KeySchema AttributeDefinitions", "BillingMode ProvisionedThroughput Tags"),
    "UpdateTable": ("TableName", "AttributeDefinitions GlobalSecondaryIndexUpdates BillingMode ProvisionedThroughput"),
}  # fmt: skip
ACTIONS = {
    "Put": ("TableName Item", f"ConditionExpression {_VALUES}"),
    "Delete": ("TableName Key", f"ConditionExpression {_VALUES}"),
    "Update": ("TableName Key UpdateExpression ExpressionAttributeValues", "ConditionExpression"),
    "ConditionCheck": ("TableName Key ConditionExpression ExpressionAttributeValues", ""),
    "Get": ("TableName Key", "ProjectionExpression"),
}  # fmt: skip


@st.composite
def members(draw, wanted):
    """Mostly sound members, some of them junk, few of them missing."""
    always, sometimes = (names.split() for names in wanted)
    names = [name for name in always if draw(st.sampled_from(range(20))) != 7]
    names += draw(st.lists(st.sampled_from(sometimes), max_size=3, unique=True)) if sometimes else []
    return {
        name: draw(JUNK) if draw(st.sampled_from(range(25))) == 7 else draw(MEMBERS[name])
        for name in dict.fromkeys(names)
    }


MEMBERS["TransactItems"] = st.lists(
    st.one_of([members(wanted).map(lambda held, kind=kind: {kind: held}) for kind, wanted in ACTIONS.items()]),
    max_size=3,
)
ANYTHING = ("", " ".join(sorted(MEMBERS)))


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
@given(data=st.data())
def test_no_request_is_a_fault(served, operation, data):
    runner, table = served
    body = data.draw(members(WANTED.get(operation, ("TableName ResourceArn", ANYTHING[1]))))
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
