"""Query and Scan: order, pages, filters, segments, indexes, and what is refused."""

import itertools

import pytest
from botocore.exceptions import ClientError

SCORES = [-1000, -12, -3, -2.5, 0, 0.001, 1, 2, 10, 100, 1e20]


def define(*keys):
    return {
        "KeySchema": [{"AttributeName": name, "KeyType": role} for name, _, role in keys],
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": kind} for name, kind, _ in keys],
        "BillingMode": "PAY_PER_REQUEST",
    }  # fmt: skip


@pytest.fixture(scope="module")
def scores(dynamodb):
    """Players with a score each, a number, as the range key; and an index by rank."""
    definition = define(("player", "S", "HASH"), ("score", "N", "RANGE"))
    definition["AttributeDefinitions"].append({"AttributeName": "rank", "AttributeType": "S"})
    dynamodb.create_table(TableName="scores", **definition, GlobalSecondaryIndexes=[{
        "IndexName": "by-rank", "KeySchema": [{"AttributeName": "rank", "KeyType": "HASH"}],
        "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["kept"]},
    }])  # fmt: skip
    for player, (at, score) in itertools.product(("ann", "ann/b", "bob"), enumerate(SCORES)):
        item = {
            "player": {"S": player}, "score": {"N": str(score)}, "at": {"N": str(at)}, "kept": {"S": "k"},
            "rank": {"S": "odd" if at % 2 else "even"},
        }  # fmt: skip
        if at == 4:
            del item["rank"]
        dynamodb.put_item(TableName="scores", Item=item)
    return "scores"


def ranks(answer):
    return [int(item["at"]["N"]) for item in answer["Items"]]


@pytest.mark.parametrize(("condition", "expected"), [
    ("player = :p", range(11)), ("player = :p AND score > :low", range(4, 11)),
    ("player = :p AND score >= :low", range(3, 11)), ("player = :p AND :low > score", range(3)),
    ("score <= :low and player = :p", range(4)), ("(player = :p) AND score = :low", [3]),
    ("player = :p AND score BETWEEN :low AND :high", range(3, 9)),
])  # fmt: skip
@pytest.mark.parametrize("forward", [True, False])
def test_key_conditions_in_the_order_of_numbers(dynamodb, scores, condition, expected, forward):
    values = {":p": {"S": "ann"}, ":low": {"N": "-2.5"}, ":high": {"N": "10"}}
    asked = {
        "TableName": scores, "KeyConditionExpression": condition, "ScanIndexForward": forward,
        "ExpressionAttributeValues": {name: value for name, value in values.items() if name in condition},
    }  # fmt: skip
    expected = [*expected] if forward else [*expected][::-1]

    assert ranks(dynamodb.query(**asked)) == expected
    pages = [ranks(page) for page in dynamodb.get_paginator("query").paginate(
        **asked, PaginationConfig={"PageSize": 2}
    )]  # fmt: skip
    assert [at for page in pages for at in page] == expected and all(len(page) <= 2 for page in pages)


def test_legacy_key_conditions(dynamodb, scores):
    answer = dynamodb.query(
        TableName=scores, ConsistentRead=True,
        KeyConditions={
            "player": {"ComparisonOperator": "EQ", "AttributeValueList": [{"S": "bob"}]},
            "score": {"ComparisonOperator": "LT", "AttributeValueList": [{"N": "0"}]},
        },
        QueryFilter={"rank": {"ComparisonOperator": "EQ", "AttributeValueList": [{"S": "odd"}]}},
        AttributesToGet=["at"],
    )  # fmt: skip
    assert ranks(answer) == [1, 3] and answer["ScannedCount"] == 4 and answer["Items"][0] == {"at": {"N": "1"}}


def test_an_index_holds_what_it_projects(dynamodb, scores):
    asked = {
        "TableName": scores, "IndexName": "by-rank", "KeyConditionExpression": "#r = :r",
        "ExpressionAttributeNames": {"#r": "rank"}, "ExpressionAttributeValues": {":r": {"S": "even"}},
    }  # fmt: skip
    found = dynamodb.query(**asked)
    assert found["Count"] == 15 and all(set(item) == {"player", "score", "rank", "kept"} for item in found["Items"])
    paged = [item for page in dynamodb.get_paginator("query").paginate(**asked, PaginationConfig={"PageSize": 4})
             for item in page["Items"]]  # fmt: skip
    assert paged == found["Items"]
    assert dynamodb.query(**asked, ScanIndexForward=False)["Items"] == paged[::-1]
    assert dynamodb.scan(TableName=scores, IndexName="by-rank")["Count"] == 30


def test_counting_and_filtering(dynamodb, scores):
    answer = dynamodb.scan(
        TableName=scores, Select="COUNT", FilterExpression="score > :z", ExpressionAttributeValues={":z": {"N": "0"}},
    )  # fmt: skip
    assert (answer["Count"], answer["ScannedCount"]) == (18, 33) and "Items" not in answer
    empty = dynamodb.scan(
        TableName=scores, Limit=5, FilterExpression="score > :z", ExpressionAttributeValues={":z": {"N": "1e21"}},
    )  # fmt: skip
    assert (empty["Count"], empty["ScannedCount"], len(empty["LastEvaluatedKey"])) == (0, 5, 2)


def test_segments_cover_the_table_once(dynamodb, scores):
    found = [
        (item["player"]["S"], item["score"]["N"])
        for segment in range(5)
        for page in dynamodb.get_paginator("scan").paginate(
            TableName=scores, Segment=segment, TotalSegments=5, PaginationConfig={"PageSize": 3}
        )
        for item in page["Items"]
    ]
    assert len(found) == len(set(found)) == 33


def test_a_page_has_a_mebibyte(dynamodb, table):
    for i in range(12):
        item = {"leaseKey": {"S": f"k{i:02}"}, "s": {"S": "x" * 200_000}}
        dynamodb.put_item(TableName=table, Item=item)

    pages = [page["Items"] for page in dynamodb.get_paginator("scan").paginate(TableName=table)]
    assert [len(page) for page in pages] in ([6, 6], [6, 6, 0])
    assert [item["leaseKey"]["S"] for page in pages for item in page] == [f"k{i:02}" for i in range(12)]


def test_ranges_of_strings_and_binaries(dynamodb):
    dynamodb.create_table(TableName="ranges", **define(("h", "B", "HASH"), ("r", "S", "RANGE")))
    words = ["", "a", "a b", "a!", "a-", "a.", "a/", "aa", "ab", "é", "\U0001f600"]
    for word in words[1:]:
        dynamodb.put_item(TableName="ranges", Item={"h": {"B": b"\0/"}, "r": {"S": word}})
    asked = {"TableName": "ranges", "ExpressionAttributeValues": {":h": {"B": b"\0/"}, ":a": {"S": "a"}}}

    def found(condition, **other):
        return [item["r"]["S"] for item in dynamodb.query(**asked, KeyConditionExpression=condition, **other)["Items"]]

    assert found("h = :h AND begins_with(r, :a)") == words[1:9]
    assert found("h = :h AND r > :a") == words[2:]
    assert found("h = :h AND r >= :a", Limit=3) == words[1:4]
    with pytest.raises(ClientError, match="starting key"):
        found("h = :h AND r > :a", ExclusiveStartKey={"h": {"B": b"\0/"}})


@pytest.mark.parametrize(("parameters", "words"), [
    ({}, "Either the KeyConditions or KeyConditionExpression parameter must be specified"),
    ({"KeyConditionExpression": "score = :n"}, "missed key schema element: player"),
    ({"KeyConditionExpression": "player > :p"}, "Query key condition not supported"),
    ({"KeyConditionExpression": "player = :n"}, "Condition parameter type does not match schema type"),
    ({"KeyConditionExpression": "player = :p OR score = :n"}, "Invalid operator"),
    ({"KeyConditionExpression": "player = :p AND score <> :n"}, "Unsupported operator on KeyCondition"),
    ({"KeyConditionExpression": "player = :p AND rank = :n"}, "missed key schema element: score"),
    ({"KeyConditionExpression": "player = :p AND player = :p"}, "one condition per key"),
    ({"KeyConditionExpression": "player = :p", "FilterExpression": "score > :n"}, "non-primary key attributes"),
    ({"KeyConditionExpression": "player = :p", "IndexName": "gone"}, "does not have the specified index: gone"),
    ({"KeyConditionExpression": "player = :p", "IndexName": "by-rank", "ConsistentRead": True}, "Consistent reads"),
    ({"KeyConditionExpression": "player = :p", "Select": "SPECIFIC_ATTRIBUTES"}, "Must specify"),
    ({"KeyConditionExpression": "player = :p", "ExclusiveStartKey": {"player": {"S": "x"}, "score": {"N": "1"}}},
     "outside query boundaries"),
])  # fmt: skip
def test_wrong_queries_are_refused(dynamodb, scores, parameters, words):
    values = {":p": {"S": "ann"}, ":n": {"N": "1"}}
    text = " ".join(value for value in parameters.values() if isinstance(value, str))
    if used := {name: value for name, value in values.items() if name in text}:
        parameters = {**parameters, "ExpressionAttributeValues": used}
    with pytest.raises(ClientError, match=words) as raised:
        dynamodb.query(TableName=scores, **parameters)
    assert raised.value.response["Error"]["Code"] == "ValidationException"


@pytest.mark.parametrize("parameters", [
    {"Segment": 1}, {"Segment": 2, "TotalSegments": 2}, {"ExclusiveStartKey": {"player": {"S": "x"}}},
    {"FilterExpression": "at > :n"}, {"Select": "EVERYTHING"}, {"ConditionalOperator": "AND"},
])  # fmt: skip
def test_wrong_scans_are_refused(dynamodb, scores, parameters):
    with pytest.raises(ClientError) as raised:
        dynamodb.scan(TableName=scores, **parameters)
    assert raised.value.response["Error"]["Code"] == "ValidationException"
