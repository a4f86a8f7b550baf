"""Items one by one and in batches, through boto3 against a real node."""

import json
import urllib.error
import urllib.request
import zlib

import pytest
from botocore.exceptions import ClientError

KEY = {"leaseKey": {"S": "k"}}


def refused(call, **parameters):
    """The error's code and message."""
    with pytest.raises(ClientError) as raised:
        call(**parameters)
    error = raised.value.response["Error"]
    return error["Code"], error["Message"]


def test_what_each_return_value_shows(dynamodb, table):
    update = {"TableName": table, "Key": KEY, "UpdateExpression": "SET a = :a, m.x = :a"}
    dynamodb.put_item(TableName=table, Item={**KEY, "a": {"N": "1"}, "m": {"M": {"x": {"N": "1"}, "y": {"N": "5"}}}})

    def shown(returns, number):
        answer = dynamodb.update_item(
            **update, ReturnValues=returns, ExpressionAttributeValues={":a": {"N": str(number)}}
        )
        return answer.get("Attributes")

    assert shown("NONE", 2) is None
    assert shown("UPDATED_OLD", 3) == {"a": {"N": "2"}, "m": {"M": {"x": {"N": "2"}}}}
    assert shown("UPDATED_NEW", 4) == {"a": {"N": "4"}, "m": {"M": {"x": {"N": "4"}}}}
    assert shown("ALL_OLD", 5) == {**KEY, "a": {"N": "4"}, "m": {"M": {"x": {"N": "4"}, "y": {"N": "5"}}}}
    assert shown("ALL_NEW", 6) == {**KEY, "a": {"N": "6"}, "m": {"M": {"x": {"N": "6"}, "y": {"N": "5"}}}}
    old = dynamodb.put_item(TableName=table, Item=KEY, ReturnValues="ALL_OLD")["Attributes"]
    assert old["a"] == {"N": "6"}
    assert dynamodb.delete_item(TableName=table, Key=KEY, ReturnValues="ALL_OLD")["Attributes"] == KEY
    assert "Attributes" not in dynamodb.delete_item(TableName=table, Key=KEY, ReturnValues="ALL_OLD")
    assert refused(dynamodb.put_item, TableName=table, Item=KEY, ReturnValues="ALL_NEW") == (
        "ValidationException", "ReturnValues can only be ALL_OLD or NONE"
    )  # fmt: skip


def test_every_type_comes_back_as_it_was_put(dynamodb, table):
    item = {
        **KEY, "s": {"S": ""}, "é\n": {"S": "é\U0001f600\0"}, "n": {"N": "-0.000123"}, "b": {"B": bytes(range(256))},
        "ss": {"SS": ["a", "b"]}, "ns": {"NS": ["1", "2"]}, "bs": {"BS": [b"", b"\xff"]}, "t": {"BOOL": True},
        "f": {"BOOL": False}, "null": {"NULL": True}, "l": {"L": [{"L": []}, {"M": {"": {"S": "x"}}}]}, "m": {"M": {}},
    }  # fmt: skip
    dynamodb.put_item(TableName=table, Item=item)

    assert dynamodb.get_item(TableName=table, Key=KEY)["Item"] == item
    some = dynamodb.get_item(TableName=table, Key=KEY, ProjectionExpression="l[1], n")["Item"]
    assert some == {"n": item["n"], "l": {"L": [item["l"]["L"][1]]}}
    assert dynamodb.get_item(TableName=table, Key=KEY, AttributesToGet=["t", "gone"])["Item"] == {"t": {"BOOL": True}}


def test_an_update_without_changes_makes_the_item_and_a_deletion_of_attributes_does_not(dynamodb, table):
    dynamodb.update_item(TableName=table, Key=KEY, AttributeUpdates={"a": {"Action": "DELETE"}})
    assert "Item" not in dynamodb.get_item(TableName=table, Key=KEY)
    dynamodb.update_item(TableName=table, Key=KEY)
    assert dynamodb.get_item(TableName=table, Key=KEY)["Item"] == KEY


def test_a_large_item_fits_and_a_larger_one_does_not(dynamodb, table):
    noise = zlib.compress(json.dumps([i * 7919 for i in range(200_000)]).encode(), 9)[: 400 * 1024 - 20]
    dynamodb.put_item(TableName=table, Item={**KEY, "b": {"B": noise}})
    assert dynamodb.get_item(TableName=table, Key=KEY)["Item"]["b"] == {"B": noise}

    assert refused(dynamodb.put_item, TableName=table, Item={**KEY, "b": {"S": "x" * 400 * 1024}}) == (
        "ValidationException", "Item size has exceeded the maximum allowed size"
    )  # fmt: skip
    assert refused(
        dynamodb.update_item, TableName=table, Key=KEY, UpdateExpression="SET c = :c",
        ExpressionAttributeValues={":c": {"S": "x" * 200_000}},
    ) == ("ValidationException", "Item size to update has exceeded the maximum allowed size")  # fmt: skip


def test_an_item_that_nests_into_itself_is_refused_before_it_is_too_deep(dynamodb, table):
    dynamodb.put_item(TableName=table, Item={**KEY, "a": {"M": {}}})
    with pytest.raises(ClientError, match="Nesting Levels have exceeded supported limits"):
        for _ in range(40):
            dynamodb.update_item(TableName=table, Key=KEY, UpdateExpression="SET a.x = a")


@pytest.mark.parametrize(("operation", "parameters", "words"), [
    ("get_item", {"Key": {"other": {"S": "k"}}}, "provided key element does not match"),
    ("get_item", {"Key": {"leaseKey": {"N": "1"}}}, "provided key element does not match"),
    ("get_item", {"Key": {"leaseKey": {"S": ""}}}, "empty string value. Key: leaseKey"),
    ("get_item", {"Key": KEY, "ReturnConsumedCapacity": "MUCH"},
     "Value 'MUCH' at 'returnConsumedCapacity' failed to satisfy constraint: Member must satisfy enum value set"),
    ("put_item", {"Item": {"a": {"S": "x"}}}, "Missing the key leaseKey in the item"),
    ("put_item", {"Item": {"leaseKey": {"N": "1"}}}, "Type mismatch for key leaseKey expected: S actual: N"),
    ("put_item", {"Item": {**KEY, "n": {"N": "x"}}}, "cannot be converted to a numeric value: x"),
    ("put_item", {"Item": KEY, "Expected": {"a": {"Exists": True}}}, "Value must be provided when Exists is true"),
    ("put_item", {"Item": KEY, "Expected": {"a": {"Exists": False, "Value": {"S": "x"}}}},
     "Value cannot be used when Exists is false for Attribute: a"),
    ("put_item", {"Item": KEY, "Expected": {"a": {"Exists": False}}, "ConditionExpression": "a = a"},
     "Can not use both expression and non-expression parameters in the same request"),
    ("put_item", {"Item": KEY, "ExpressionAttributeValues": {":a": {"S": "x"}}},
     "ExpressionAttributeValues can only be specified when using expressions"),
    ("put_item", {"Item": KEY, "ConditionalOperator": "OR"}, "ConditionalOperator cannot be used"),
    ("update_item", {
        "Key": KEY, "UpdateExpression": "SET leaseKey = :a", "ExpressionAttributeValues": {":a": {"S": "x"}},
     }, "Cannot update attribute leaseKey. This attribute is part of the key"),
    ("update_item", {"Key": KEY, "AttributeUpdates": {"a": {"Action": "PUT"}}}, "Only DELETE action"),
    ("update_item", {"Key": KEY, "AttributeUpdates": {"a": {"Action": "ADD", "Value": {"S": "x"}}}},
     "ADD action is not supported for the type STRING"),
])  # fmt: skip
def test_wrong_requests_are_refused_in_the_words_that_clients_know(dynamodb, table, operation, parameters, words):
    code, message = refused(getattr(dynamodb, operation), TableName=table, **parameters)
    assert code == "ValidationException" and words in message


def test_a_table_that_is_not_there(dynamodb):
    for call, parameters in (
        (dynamodb.get_item, {"Key": KEY}), (dynamodb.put_item, {"Item": KEY}), (dynamodb.update_item, {"Key": KEY}),
        (dynamodb.scan, {}),
    ):  # fmt: skip
        assert refused(call, TableName="nowhere", **parameters)[0] == "ResourceNotFoundException"
    assert refused(dynamodb.get_item, TableName="no/where", Key=KEY)[0] == "ValidationException"


def test_a_table_may_be_named_by_its_arn(dynamodb, table):
    arn = dynamodb.describe_table(TableName=table)["Table"]["TableArn"]
    dynamodb.put_item(TableName=arn, Item=KEY)
    assert dynamodb.get_item(TableName=table, Key=KEY)["Item"] == KEY


def test_a_failed_condition_shows_the_item_to_who_asks(dynamodb, table):
    item = {**KEY, "a": {"N": "1"}}
    dynamodb.put_item(TableName=table, Item=item)
    with pytest.raises(ClientError) as raised:
        dynamodb.delete_item(
            TableName=table, Key=KEY, ConditionExpression="attribute_not_exists(a)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )  # fmt: skip
    assert raised.value.response["Item"] == item


def test_batches(dynamodb, table):
    requests = [{"PutRequest": {"Item": {"leaseKey": {"S": f"k{i}"}, "n": {"N": str(i)}}}} for i in range(25)]
    answer = dynamodb.batch_write_item(RequestItems={table: requests}, ReturnConsumedCapacity="TOTAL")
    assert answer["UnprocessedItems"] == {}
    assert answer["ConsumedCapacity"] == [{"TableName": table, "CapacityUnits": 25.0}]

    keys = [{"leaseKey": {"S": f"k{i}"}} for i in range(40)]
    found = dynamodb.batch_get_item(RequestItems={table: {"Keys": keys, "ProjectionExpression": "n"}})
    assert sorted(int(item["n"]["N"]) for item in found["Responses"][table]) == [*range(25)]
    dynamodb.batch_write_item(RequestItems={table: [{"DeleteRequest": {"Key": key}} for key in keys[:20]]})
    assert dynamodb.scan(TableName=table)["Count"] == 5

    twice = {table: {"Keys": [keys[0], keys[0]]}}
    assert refused(dynamodb.batch_get_item, RequestItems=twice)[1] == "Provided list of item keys contains duplicates"
    many = {table: {"Keys": [{"leaseKey": {"S": f"k{i}"}} for i in range(101)]}}
    assert "Too many items" in refused(dynamodb.batch_get_item, RequestItems=many)[1]


def test_a_batch_with_one_wrong_item_writes_none(dynamodb, table):
    good, bad = {"PutRequest": {"Item": KEY}}, {"PutRequest": {"Item": {"a": {"S": "x"}}}}
    assert refused(dynamodb.batch_write_item, RequestItems={table: [good, bad]})[0] == "ValidationException"
    assert dynamodb.scan(TableName=table)["Count"] == 0


def test_a_batch_larger_than_an_answer_says_what_is_left(dynamodb, table):
    for i in range(45):
        item = {"leaseKey": {"S": f"k{i}"}, "s": {"S": "x" * 390_000}}
        dynamodb.put_item(TableName=table, Item=item)

    asked = {table: {"Keys": [{"leaseKey": {"S": f"k{i}"}} for i in range(45)], "ProjectionExpression": "leaseKey"}}
    found = []
    while asked:
        answer = dynamodb.batch_get_item(RequestItems=asked)
        found += answer["Responses"][table]
        asked = answer["UnprocessedKeys"]
        assert len(found) == 45 or asked[table]["ProjectionExpression"] == "leaseKey"
    assert sorted(item["leaseKey"]["S"] for item in found) == sorted(f"k{i}" for i in range(45))


def test_capacity_is_told_when_asked(dynamodb, table):
    put = dynamodb.put_item(TableName=table, Item={**KEY, "s": {"S": "x" * 3000}}, ReturnConsumedCapacity="TOTAL")
    assert put["ConsumedCapacity"] == {"TableName": table, "CapacityUnits": 3.0}
    got = dynamodb.get_item(TableName=table, Key=KEY, ReturnConsumedCapacity="INDEXES", ConsistentRead=True)
    assert got["ConsumedCapacity"]["Table"] == {"CapacityUnits": 1.0}
    assert "ConsumedCapacity" not in dynamodb.get_item(TableName=table, Key=KEY)


def raw(face, operation, body, content_type="application/x-amz-json-1.0"):
    asked = urllib.request.Request(f"http://{face.address}/", body, {
        "content-type": content_type, "x-amz-target": f"DynamoDB_20120810.{operation}",
        "x-amz-date": "20261123T000000Z",
        "authorization": "AWS4-HMAC-SHA256 Credential=AK/20261123/us-east-1/dynamodb/aws4_request, "
                         f"SignedHeaders=host;x-amz-date, Signature={'0' * 64}",
    })  # fmt: skip
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.parametrize(("body", "status", "kind"), [
    (b'{"TableName":"nowhere"}', 400, "com.amazonaws.dynamodb.v20120810#ResourceNotFoundException"),
    (b'{"TableName":5}', 400, "com.amazon.coral.service#SerializationException"),
    (b'{"TableName"', 400, "com.amazon.coral.service#SerializationException"),
    (b'["TableName"]', 400, "com.amazon.coral.service#SerializationException"),
    (b'{"TableName":' + b"[" * 100_000, 400, "com.amazon.coral.service#SerializationException"),
    (b'{"TableName":"\\ud800"}', 400, None),
    (b"{}", 400, "com.amazon.coral.validate#ValidationException"),
    (b'{"TableName":null}', 400, "com.amazon.coral.validate#ValidationException"),
])  # fmt: skip
def test_errors_are_named_and_their_bodies_sealed(face, body, status, kind):
    code, headers, answer = raw(face, "DescribeTable", body)

    assert code == status and headers["content-type"] == "application/x-amz-json-1.0"
    assert int(headers["x-amz-crc32"]) == zlib.crc32(answer)
    assert kind is None or json.loads(answer)["__type"] == kind
    assert headers["x-amzn-errortype"] == json.loads(answer)["__type"].partition("#")[2]
    assert headers["x-amzn-requestid"]


def test_answers_are_sealed_too(face, dynamodb, table):
    code, headers, answer = raw(face, "GetItem", json.dumps({"TableName": table, "Key": KEY}).encode())
    assert (code, answer) == (200, b"{}")
    assert int(headers["x-amz-crc32"]) == zlib.crc32(answer)


def test_what_is_not_json_is_refused(face):
    assert raw(face, "DescribeTable", b"\xa0", "application/x-amz-cbor-1.1")[0] == 400
    assert raw(face, "ExecuteStatement", b"{}")[2].find(b"UnknownOperationException") > 0
