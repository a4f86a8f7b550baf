"""Transactions happen as a whole or not at all, once for each token, and read one moment."""

import random
import threading

import pytest
from botocore.exceptions import ClientError


def put(table, key, **item):
    return {"Put": {"TableName": table, "Item": {"leaseKey": {"S": key}, **item}}}


def reasons(raised):
    return [reason["Code"] for reason in raised.value.response["CancellationReasons"]]


def test_one_reason_cancels_all(dynamodb, table):
    dynamodb.put_item(TableName=table, Item={"leaseKey": {"S": "there"}, "n": {"N": "1"}})
    check = {"ConditionCheck": {
        "TableName": table, "Key": {"leaseKey": {"S": "there"}}, "ConditionExpression": "n = :n",
        "ExpressionAttributeValues": {":n": {"N": "2"}}, "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }}  # fmt: skip
    update = {"Update": {
        "TableName": table, "Key": {"leaseKey": {"S": "other"}}, "UpdateExpression": "SET n = n + :n",
        "ExpressionAttributeValues": {":n": {"N": "2"}},
    }}  # fmt: skip
    with pytest.raises(ClientError) as raised:
        dynamodb.transact_write_items(TransactItems=[put(table, "a"), check, update])

    assert reasons(raised) == ["None", "ConditionalCheckFailed", "ValidationError"]
    assert raised.value.response["CancellationReasons"][1]["Item"]["n"] == {"N": "1"}
    assert dynamodb.scan(TableName=table)["Count"] == 1


def test_as_many_as_there_may_be(dynamodb, table):
    dynamodb.transact_write_items(TransactItems=[put(table, f"k{i}") for i in range(100)])
    assert dynamodb.scan(TableName=table)["Count"] == 100
    with pytest.raises(ClientError, match="less than or equal to 100"):
        dynamodb.transact_write_items(TransactItems=[put(table, f"l{i}") for i in range(101)])


@pytest.mark.parametrize("items", [
    lambda table: [put(table, "a"), put(table, "a")],
    lambda table: [put(table, "a") | {"Delete": {"TableName": table, "Key": {"leaseKey": {"S": "b"}}}}],
    lambda table: [{}],
    lambda table: [put(table, f"k{i}", b={"B": random.Random(i).randbytes(380_000)}) for i in range(4)],
], ids=["one item twice", "two actions", "no action", "too large together"])  # fmt: skip
def test_wrong_transactions_are_refused(dynamodb, table, items):
    with pytest.raises(ClientError) as raised:
        dynamodb.transact_write_items(TransactItems=items(table))
    assert raised.value.response["Error"]["Code"] == "ValidationException"
    assert dynamodb.scan(TableName=table)["Count"] == 0


def test_a_token_stands_for_one_request(dynamodb, table):
    asked = {"TransactItems": [put(table, "a")], "ClientRequestToken": f"token-{table}"}
    dynamodb.transact_write_items(**asked)
    dynamodb.delete_item(TableName=table, Key={"leaseKey": {"S": "a"}})
    dynamodb.transact_write_items(**asked)
    assert dynamodb.scan(TableName=table)["Count"] == 0         # it was done before, and is not done again
    with pytest.raises(ClientError, match="IdempotentParameterMismatchException"):
        dynamodb.transact_write_items(**{**asked, "TransactItems": [put(table, "b")]})


def test_reading_tells_what_is_there_and_what_is_not(dynamodb, table):
    dynamodb.put_item(TableName=table, Item={"leaseKey": {"S": "a"}, "n": {"N": "1"}, "m": {"N": "2"}})
    gets = [
        {"Get": {"TableName": table, "Key": {"leaseKey": {"S": "a"}}, "ProjectionExpression": "n"}},
        {"Get": {"TableName": table, "Key": {"leaseKey": {"S": "b"}}}},
    ]
    assert dynamodb.transact_get_items(TransactItems=gets)["Responses"] == [{"Item": {"n": {"N": "1"}}}, {}]


def test_what_moves_between_items_is_never_seen_twice_or_lost(dynamodb, table):
    keys = [{"leaseKey": {"S": name}} for name in ("left", "right")]
    for key in keys:
        dynamodb.put_item(TableName=table, Item={**key, "n": {"N": "50"}})
    over = threading.Event()
    failures = []

    def move():
        drawn = random.Random(7)
        for _ in range(25):
            amounts = {":a": {"N": str(drawn.randint(1, 9))}}
            for key in drawn.sample(keys, 2)[:1]:
                other = keys[1 - keys.index(key)]
                try:
                    dynamodb.transact_write_items(TransactItems=[
                        {"Update": {
                            "TableName": table, "Key": which, "UpdateExpression": f"SET n = n {sign} :a",
                            "ConditionExpression": "n > :a" if sign == "-" else "attribute_exists(n)",
                            "ExpressionAttributeValues": amounts,
                        }}
                        for which, sign in ((key, "-"), (other, "+"))
                    ])  # fmt: skip
                except ClientError as error:
                    if error.response["Error"]["Code"] != "TransactionCanceledException":
                        failures.append(error)

    def watch():
        while not over.is_set():
            found = dynamodb.transact_get_items(
                TransactItems=[{"Get": {"TableName": table, "Key": key}} for key in keys]
            )["Responses"]
            if sum(int(each["Item"]["n"]["N"]) for each in found) != 100:
                failures.append(found)

    def reading():
        try:
            watch()
        except ClientError as error:
            if error.response["Error"]["Code"] != "TransactionCanceledException":
                failures.append(error)

    movers = [threading.Thread(target=move) for _ in range(4)]
    reader = threading.Thread(target=reading)
    for thread in (*movers, reader):
        thread.start()
    for thread in movers:
        thread.join()
    over.set()
    reader.join()
    assert failures == []
