"""What the KCL sends, call by call: 1.x and 2.x with legacy conditions, 3.x with expressions, each in its shape."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

INDEX = "LeaseOwnerToLeaseKeyIndex"


def lease(key, **other):
    """An item as LeaseSerializer writes it."""
    item = {
        "leaseKey": {"S": key}, "leaseCounter": {"N": "0"}, "ownerSwitchesSinceCheckpoint": {"N": "0"},
        "checkpoint": {"S": "TRIM_HORIZON"}, "checkpointSubSequenceNumber": {"N": "0"},
        "parentShardId": {"SS": ["shardId-000000000000"]},
    }  # fmt: skip
    return {**item, **other}


def absent(*names):
    return {name: {"Exists": False} for name in names}


def create_lease(dynamodb, table, key, **other):
    dynamodb.put_item(TableName=table, Item=lease(key, **other), Expected=absent("leaseKey"))


def take_lease(dynamodb, table, key, owner, counter, **other):
    """KCL's takeLease: the counter must still be what was read, and the owner gone or who it was."""
    return dynamodb.update_item(
        TableName=table, Key={"leaseKey": {"S": key}},
        Expected={"leaseCounter": {"Value": {"N": str(counter)}}, **absent("leaseOwner")},
        AttributeUpdates={
            "leaseCounter": {"Value": {"N": str(counter + 1)}, "Action": "PUT"},
            "leaseOwner": {"Value": {"S": owner}, "Action": "PUT"},
            "ownerSwitchesSinceCheckpoint": {"Value": {"N": "1"}, "Action": "ADD"},
        },
        ReturnValues="ALL_NEW", **other,
    )["Attributes"]  # fmt: skip


def code_of(raised):
    return raised.value.response["Error"]["Code"]


def test_the_lease_table_comes_about_as_the_kcl_makes_it(dynamodb):
    name = "orders-application"
    with pytest.raises(ClientError) as raised:
        dynamodb.describe_table(TableName=name)
    assert code_of(raised) == "ResourceNotFoundException"

    made = dynamodb.create_table(
        TableName=name, KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}], BillingMode="PAY_PER_REQUEST",
        Tags=[{"Key": "team", "Value": "orders"}], DeletionProtectionEnabled=False,
    )["TableDescription"]  # fmt: skip
    assert made["TableStatus"] == "CREATING" and made["TableArn"].endswith(":table/orders-application")
    with pytest.raises(ClientError) as raised:
        dynamodb.create_table(
            TableName=name, KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}], BillingMode="PAY_PER_REQUEST",
        )  # fmt: skip
    assert code_of(raised) == "ResourceInUseException"

    updated = dynamodb.update_table(
        TableName=name,
        AttributeDefinitions=[
            {"AttributeName": "leaseOwner", "AttributeType": "S"}, {"AttributeName": "leaseKey", "AttributeType": "S"},
        ],
        GlobalSecondaryIndexUpdates=[{"Create": {
            "IndexName": INDEX,
            "KeySchema": [
                {"AttributeName": "leaseOwner", "KeyType": "HASH"}, {"AttributeName": "leaseKey", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }}],
    )["TableDescription"]  # fmt: skip
    assert updated["TableStatus"] == "UPDATING"
    assert updated["GlobalSecondaryIndexes"][0]["IndexStatus"] == "CREATING"
    dynamodb.update_continuous_backups(
        TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )

    described = dynamodb.describe_table(TableName=name)["Table"]
    assert described["TableStatus"] == "ACTIVE"
    assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert [(index["IndexName"], index["IndexStatus"]) for index in described["GlobalSecondaryIndexes"]] == [
        (INDEX, "ACTIVE")
    ]
    backups = dynamodb.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
    assert backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"
    tags = dynamodb.list_tags_of_resource(ResourceArn=described["TableArn"])["Tags"]
    assert tags == [{"Key": "team", "Value": "orders"}]


def test_a_lease_is_created_once(dynamodb, table):
    create_lease(dynamodb, table, "shardId-000000000001")
    with pytest.raises(ClientError) as raised:
        create_lease(dynamodb, table, "shardId-000000000001")

    assert code_of(raised) == "ConditionalCheckFailedException"
    assert raised.value.response["Error"]["Message"] == "The conditional request failed"


def test_a_lease_is_taken_renewed_checkpointed_and_evicted(dynamodb, table):
    key = {"leaseKey": {"S": "shardId-000000000001"}}
    create_lease(dynamodb, table, "shardId-000000000001")

    taken = take_lease(dynamodb, table, "shardId-000000000001", "worker-1", 0)
    assert taken["leaseCounter"] == {"N": "1"} and taken["ownerSwitchesSinceCheckpoint"] == {"N": "1"}

    with pytest.raises(ClientError) as raised:                      # somebody who read the counter before
        take_lease(dynamodb, table, "shardId-000000000001", "worker-2", 0)
    assert code_of(raised) == "ConditionalCheckFailedException" and "Item" not in raised.value.response

    renewed = {
        "TableName": table, "Key": key,
        "Expected": {"leaseCounter": {"Value": {"N": "1"}}, "leaseOwner": {"Value": {"S": "worker-1"}}},
        "AttributeUpdates": {"leaseCounter": {"Value": {"N": "2"}, "Action": "PUT"}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }  # fmt: skip
    dynamodb.update_item(**renewed)
    with pytest.raises(ClientError) as raised:                      # the answer was lost, and the call came again
        dynamodb.update_item(**renewed)
    assert raised.value.response["Item"]["leaseCounter"] == {"N": "2"}

    dynamodb.update_item(
        TableName=table, Key=key, Expected={"leaseCounter": {"Value": {"N": "2"}}},
        AttributeUpdates={
            "leaseCounter": {"Value": {"N": "3"}, "Action": "PUT"},
            "checkpoint": {"Value": {"S": "49640"}, "Action": "PUT"},
            "checkpointSubSequenceNumber": {"Value": {"N": "7"}, "Action": "PUT"},
            "ownerSwitchesSinceCheckpoint": {"Value": {"N": "0"}, "Action": "PUT"},
            "pendingCheckpoint": {"Action": "DELETE"}, "pendingCheckpointState": {"Action": "DELETE"},
        },
    )  # fmt: skip
    dynamodb.update_item(
        TableName=table, Key=key, Expected={"leaseOwner": {"Value": {"S": "worker-1"}}},
        AttributeUpdates={
            "leaseOwner": {"Action": "DELETE"}, "leaseCounter": {"Value": {"N": "1"}, "Action": "ADD"},
        },
    )  # fmt: skip

    found = dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
    assert found == lease(
        "shardId-000000000001", leaseCounter={"N": "4"}, checkpoint={"S": "49640"},
        checkpointSubSequenceNumber={"N": "7"},
    )  # fmt: skip
    dynamodb.delete_item(TableName=table, Key=key)
    assert "Item" not in dynamodb.get_item(TableName=table, Key=key)


def test_meta_information_changes_only_a_lease_that_is_there(dynamodb, table):
    asked = {
        "TableName": table, "Key": {"leaseKey": {"S": "shardId-000000000009"}},
        "Expected": {"leaseKey": {"Exists": True, "Value": {"S": "shardId-000000000009"}}},
        "AttributeUpdates": {
            "childShardIds": {"Value": {"SS": ["shardId-000000000011", "shardId-000000000010"]}, "Action": "PUT"},
            "startingHashKey": {"Value": {"S": "0"}, "Action": "PUT"},
        },
    }  # fmt: skip
    with pytest.raises(ClientError) as raised:
        dynamodb.update_item(**asked)
    assert code_of(raised) == "ConditionalCheckFailedException"

    create_lease(dynamodb, table, "shardId-000000000009")
    dynamodb.update_item(**asked)
    found = dynamodb.get_item(TableName=table, Key=asked["Key"])["Item"]
    assert found["childShardIds"] == {"SS": ["shardId-000000000010", "shardId-000000000011"]}


def test_leases_of_a_worker_come_from_the_index(dynamodb, table):
    dynamodb.update_table(
        TableName=table,
        AttributeDefinitions=[
            {"AttributeName": "leaseOwner", "AttributeType": "S"}, {"AttributeName": "leaseKey", "AttributeType": "S"},
        ],
        GlobalSecondaryIndexUpdates=[{"Create": {
            "IndexName": INDEX,
            "KeySchema": [
                {"AttributeName": "leaseOwner", "KeyType": "HASH"}, {"AttributeName": "leaseKey", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }}],
    )  # fmt: skip
    for i in range(30):
        owner = {"leaseOwner": {"S": f"worker-{i % 3}"}} if i < 27 else {}
        create_lease(dynamodb, table, f"shardId-{i:012}", **owner)

    asked = {
        "TableName": table, "IndexName": INDEX, "KeyConditionExpression": "leaseOwner = :leaseOwner",
        "ExpressionAttributeValues": {":leaseOwner": {"S": "worker-1"}},
    }  # fmt: skip
    found = dynamodb.query(**asked)["Items"]
    assert [item["leaseKey"]["S"] for item in found] == [f"shardId-{i:012}" for i in range(1, 27, 3)]
    assert all(set(item) == {"leaseOwner", "leaseKey"} for item in found)

    paged = [
        item for page in dynamodb.get_paginator("query").paginate(**asked, PaginationConfig={"PageSize": 2})
        for item in page["Items"]
    ]
    assert paged == found
    backwards = dynamodb.query(**asked, ScanIndexForward=False, Limit=3)
    assert backwards["Items"] == found[:-4:-1]
    assert backwards["LastEvaluatedKey"] == {"leaseOwner": {"S": "worker-1"}, "leaseKey": found[-3]["leaseKey"]}


def test_everything_of_an_application_lies_in_one_table_told_apart_by_entity_type(dynamodb, table):
    for i in range(12):
        create_lease(dynamodb, table, f"shardId-{i:012}")
    dynamodb.put_item(TableName=table, Item={
        "leaseKey": {"S": "worker-1"}, "entityType": {"S": "WORKER_METRIC_STATS"}, "lut": {"N": "1763912345"},
        "sts": {"M": {"C": {"L": [{"N": "12.5"}, {"N": "-1"}]}}}, "opr": {"M": {"C": {"L": [{"N": "80"}]}}},
    })  # fmt: skip
    dynamodb.put_item(TableName=table, Item={"leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}})

    leases = dynamodb.get_paginator("scan").paginate(
        TableName=table, ConsistentRead=True, PaginationConfig={"PageSize": 5},
        FilterExpression="attribute_not_exists(#t) OR #t = :lease", ExpressionAttributeNames={"#t": "entityType"},
        ExpressionAttributeValues={":lease": {"S": "LEASE"}},
    )  # fmt: skip
    assert len([item for page in leases for item in page["Items"]]) == 12
    stats = dynamodb.scan(
        TableName=table, FilterExpression="entityType = :t",
        ExpressionAttributeValues={":t": {"S": "WORKER_METRIC_STATS"}},
    )  # fmt: skip
    assert stats["Count"] == 1 and stats["ScannedCount"] == 14
    assert stats["Items"][0]["sts"] == {"M": {"C": {"L": [{"N": "12.5"}, {"N": "-1"}]}}}

    segments = [
        item["leaseKey"]["S"]
        for segment in range(4)
        for item in dynamodb.scan(TableName=table, Segment=segment, TotalSegments=4)["Items"]
    ]
    assert len(segments) == len(set(segments)) == 14


def test_leases_of_one_stream_are_filtered_out_of_many(dynamodb, table):
    for stream in ("123456789012:orders:1", "123456789012:users:1"):
        for i in range(3):
            key = f"{stream}:shardId-{i:012}"
            create_lease(dynamodb, table, key, streamName={"S": stream}, shardId={"S": f"shardId-{i:012}"})

    found = dynamodb.scan(
        TableName=table, FilterExpression="streamName = :streamName",
        ExpressionAttributeValues={":streamName": {"S": "123456789012:users:1"}},
    )  # fmt: skip
    assert found["Count"] == 3
    legacy = dynamodb.scan(TableName=table, ScanFilter={
        "streamName": {"ComparisonOperator": "EQ", "AttributeValueList": [{"S": "123456789012:users:1"}]},
    })  # fmt: skip
    assert legacy["Items"] == found["Items"]


def test_the_leader_lock_is_taken_kept_alive_and_taken_over(dynamodb, table):
    """The lock client: a new lock if there is none, a heartbeat by owner and version, a take-over by version."""
    key = {"leaseKey": {"S": "Leader"}}
    names = {"#k": "leaseKey", "#r": "recordVersionNumber", "#o": "ownerName"}
    item = {
        **key, "ownerName": {"S": "worker-1"}, "leaseDuration": {"S": "20000"}, "recordVersionNumber": {"S": "v1"},
        "entityType": {"S": "LEADER"},
    }  # fmt: skip
    acquire = {
        "TableName": table, "Item": item, "ConditionExpression": "attribute_not_exists(#k)",
        "ExpressionAttributeNames": {"#k": "leaseKey"},
    }  # fmt: skip
    dynamodb.put_item(**acquire)
    with pytest.raises(ClientError) as raised:
        dynamodb.put_item(**acquire)
    assert code_of(raised) == "ConditionalCheckFailedException"

    dynamodb.update_item(
        TableName=table, Key=key, ExpressionAttributeNames={**names, "#d": "leaseDuration"},
        ConditionExpression="attribute_exists(#k) AND #r = :r AND #o = :o",
        UpdateExpression="SET #d = :d, #r = :next",
        ExpressionAttributeValues={
            ":r": {"S": "v1"}, ":o": {"S": "worker-1"}, ":next": {"S": "v2"}, ":d": {"S": "20000"},
        },
    )  # fmt: skip
    taken = {
        "TableName": table, "Item": {**item, "ownerName": {"S": "worker-2"}, "recordVersionNumber": {"S": "v3"}},
        "ConditionExpression": "attribute_exists(#k) AND #r = :r",
        "ExpressionAttributeNames": {"#k": "leaseKey", "#r": "recordVersionNumber"},
    }  # fmt: skip
    with pytest.raises(ClientError):
        dynamodb.put_item(**taken, ExpressionAttributeValues={":r": {"S": "v1"}})
    dynamodb.put_item(**taken, ExpressionAttributeValues={":r": {"S": "v2"}})

    with pytest.raises(ClientError):
        dynamodb.delete_item(
            TableName=table, Key=key, ConditionExpression="attribute_exists(#k) AND #r = :r AND #o = :o",
            ExpressionAttributeNames=names,
            ExpressionAttributeValues={":r": {"S": "v2"}, ":o": {"S": "worker-1"}},
        )  # fmt: skip
    found = dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
    assert found["ownerName"] == {"S": "worker-2"} and found["recordVersionNumber"] == {"S": "v3"}


def test_migration_moves_items_between_tables_in_one_transaction(dynamodb, table):
    dynamodb.put_item(TableName=table, Item={"leaseKey": {"S": "old"}, "version": {"N": "1"}})
    asked = {
        "TransactItems": [
            {"ConditionCheck": {
                "TableName": table, "Key": {"leaseKey": {"S": "TableMigration3.5"}},
                "ConditionExpression": "attribute_not_exists(leaseKey)",
            }},
            {"Put": {"TableName": table, "Item": {"leaseKey": {"S": "new"}, "entityType": {"S": "LEADER"}}}},
            {"Delete": {
                "TableName": table, "Key": {"leaseKey": {"S": "old"}}, "ConditionExpression": "version = :v",
                "ExpressionAttributeValues": {":v": {"N": "1"}},
            }},
        ],
        "ClientRequestToken": "7f6c9b0e-one",
    }  # fmt: skip
    dynamodb.transact_write_items(**asked)
    dynamodb.transact_write_items(**asked)                          # the same again: the first answer was lost

    assert {item["leaseKey"]["S"] for item in dynamodb.scan(TableName=table)["Items"]} == {"new"}
    with pytest.raises(ClientError) as raised:
        dynamodb.transact_write_items(TransactItems=asked["TransactItems"])
    assert code_of(raised) == "TransactionCanceledException"
    assert [reason["Code"] for reason in raised.value.response["CancellationReasons"]] == [
        "None", "None", "ConditionalCheckFailed"
    ]  # fmt: skip
    assert "[None, None, ConditionalCheckFailed]" in raised.value.response["Error"]["Message"]


def test_a_worker_reports_its_load_through_the_enhanced_client(dynamodb, table):
    """Every name and value has a long placeholder; the item is made by its first update."""
    fields = {"entityType": {"S": "WORKER_METRIC_STATS"}, "lut": {"N": "1795451"}, "opr": {"M": {}}, "sts": {"M": {}}}
    found = dynamodb.update_item(
        TableName=table, Key={"leaseKey": {"S": "worker-1"}}, ReturnValues="ALL_NEW",
        UpdateExpression="SET " + ", ".join(f"#AMZN_MAPPED_{name} = :AMZN_MAPPED_{name}" for name in fields),
        ExpressionAttributeNames={f"#AMZN_MAPPED_{name}": name for name in fields},
        ExpressionAttributeValues={f":AMZN_MAPPED_{name}": value for name, value in fields.items()},
    )["Attributes"]  # fmt: skip
    assert found == {"leaseKey": {"S": "worker-1"}, **fields}


def test_of_many_writers_that_expect_the_same_counter_exactly_one_wins(dynamodb, table):
    create_lease(dynamodb, table, "shardId-000000000001")

    def race(writer, counter):
        try:
            dynamodb.update_item(
                TableName=table, Key={"leaseKey": {"S": "shardId-000000000001"}},
                Expected={"leaseCounter": {"Value": {"N": str(counter)}}},
                AttributeUpdates={
                    "leaseCounter": {"Value": {"N": str(counter + 1)}, "Action": "PUT"},
                    "leaseOwner": {"Value": {"S": f"worker-{writer}"}, "Action": "PUT"},
                },
            )  # fmt: skip
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ConditionalCheckFailedException"
            return None
        return f"worker-{writer}"

    with ThreadPoolExecutor(16) as pool:
        for counter in range(6):
            won = [name for name in pool.map(race, range(16), [counter] * 16) if name is not None]
            found = dynamodb.get_item(TableName=table, Key={"leaseKey": {"S": "shardId-000000000001"}})["Item"]
            assert won == [found["leaseOwner"]["S"]] and found["leaseCounter"] == {"N": str(counter + 1)}


def test_additions_of_many_writers_all_count(dynamodb, table):
    key = {"leaseKey": {"S": "counter"}}

    def add(_):
        dynamodb.update_item(
            TableName=table, Key=key, UpdateExpression="ADD n :one SET m = if_not_exists(m, :zero) + :one",
            ExpressionAttributeValues={":one": {"N": "1"}, ":zero": {"N": "0"}},
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))

    found = dynamodb.get_item(TableName=table, Key=key)["Item"]
    assert found["n"] == found["m"] == {"N": "40"}
