"""Tables: made, described, changed, listed and removed; and nothing left of one that is gone."""

import pytest
from botocore.exceptions import ClientError

from streamkit.gateway.dynamodb import open_dynamodb
from streamkit.runtime.real import real_runtime
from tests.gateway.dynamodb.face import serving

SIMPLE = {
    "KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "S"}], "BillingMode": "PAY_PER_REQUEST",
}  # fmt: skip
OWNER = {
    "IndexName": "by-owner", "KeySchema": [{"AttributeName": "o", "KeyType": "HASH"}],
    "Projection": {"ProjectionType": "ALL"},
}  # fmt: skip


def message(raised):
    return raised.value.response["Error"]["Message"]


def test_a_table_made_again_is_empty(face, dynamodb):
    dynamodb.create_table(TableName="again", **SIMPLE)
    dynamodb.put_item(TableName="again", Item={"k": {"S": "1"}})
    first = dynamodb.describe_table(TableName="again")["Table"]
    assert dynamodb.delete_table(TableName="again")["TableDescription"]["TableStatus"] == "DELETING"
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        dynamodb.describe_table(TableName="again")
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        dynamodb.delete_table(TableName="again")
    items = "dynamodb/000000000000/us-east-1/items/again/"
    assert face.run(face.client.list_notes(items)) == []
    late = f"{items}{first['TableId'].replace('-', '')}/1"      # a writer that raced with the deletion
    face.run(face.client.swap_notes([(late, 0, b'{"k":{"S":"1"}}')]))

    dynamodb.create_table(TableName="again", **SIMPLE)
    assert dynamodb.describe_table(TableName="again")["Table"]["TableId"] != first["TableId"]
    assert dynamodb.scan(TableName="again")["Count"] == 0
    assert face.run(face.client.list_notes(items)) == []


def test_many_items_go_with_their_table(face, dynamodb):
    dynamodb.create_table(TableName="many", **SIMPLE)
    for start in range(0, 250, 25):
        dynamodb.batch_write_item(RequestItems={
            "many": [{"PutRequest": {"Item": {"k": {"S": str(i)}}}} for i in range(start, start + 25)]
        })  # fmt: skip
    dynamodb.delete_table(TableName="many")
    assert face.run(face.client.list_notes("dynamodb/000000000000/us-east-1/items/many/")) == []


def test_a_protected_table_stays(dynamodb):
    dynamodb.create_table(TableName="protected", **SIMPLE, DeletionProtectionEnabled=True)
    with pytest.raises(ClientError, match="protected against deletion"):
        dynamodb.delete_table(TableName="protected")
    dynamodb.update_table(TableName="protected", DeletionProtectionEnabled=False)
    dynamodb.delete_table(TableName="protected")


def test_tables_are_listed_in_pages(face):
    dynamodb = face.boto("dynamodb", region="eu-north-1")
    names = sorted(f"t-{i}" for i in range(7))
    for name in names:
        dynamodb.create_table(TableName=name, **SIMPLE)

    pages = [page["TableNames"] for page in dynamodb.get_paginator("list_tables").paginate(
        PaginationConfig={"PageSize": 3}
    )]  # fmt: skip
    assert [name for page in pages for name in page] == names and [len(page) for page in pages] == [3, 3, 1]
    assert dynamodb.list_tables(ExclusiveStartTableName="t-4")["TableNames"] == ["t-5", "t-6"]


def test_regions_are_apart(face):
    one, other = (face.boto("dynamodb", region=region) for region in ("eu-west-1", "eu-west-2"))
    one.create_table(TableName="regional", **SIMPLE)
    one.put_item(TableName="regional", Item={"k": {"S": "1"}})
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        other.scan(TableName="regional")
    other.create_table(TableName="regional", **SIMPLE)
    assert other.scan(TableName="regional")["Count"] == 0
    assert one.scan(TableName="regional")["Count"] == 1


def test_an_index_comes_and_goes(dynamodb):
    dynamodb.create_table(TableName="indexed", **SIMPLE)
    dynamodb.put_item(TableName="indexed", Item={"k": {"S": "1"}, "o": {"S": "me"}})
    dynamodb.put_item(TableName="indexed", Item={"k": {"S": "2"}, "o": {"N": "1"}})
    both = [{"AttributeName": name, "AttributeType": "S"} for name in "ko"]
    dynamodb.update_table(
        TableName="indexed", AttributeDefinitions=both, GlobalSecondaryIndexUpdates=[{"Create": OWNER}]
    )
    asked = {
        "TableName": "indexed", "IndexName": "by-owner", "KeyConditionExpression": "o = :o",
        "ExpressionAttributeValues": {":o": {"S": "me"}},
    }  # fmt: skip
    assert dynamodb.query(**asked)["Items"] == [{"k": {"S": "1"}, "o": {"S": "me"}}]
    for value, words in (({"N": "1"}, "Type mismatch for Index Key o"), ({"S": ""}, "secondary index key")):
        with pytest.raises(ClientError, match=words):
            dynamodb.put_item(TableName="indexed", Item={"k": {"S": "3"}, "o": value})
    with pytest.raises(ClientError, match="already exists"):
        dynamodb.update_table(
            TableName="indexed", AttributeDefinitions=both, GlobalSecondaryIndexUpdates=[{"Create": OWNER}]
        )

    gone = dynamodb.update_table(
        TableName="indexed", GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": "by-owner"}}]
    )["TableDescription"]
    assert gone["GlobalSecondaryIndexes"][0]["IndexStatus"] == "DELETING"
    described = dynamodb.describe_table(TableName="indexed")["Table"]
    assert "GlobalSecondaryIndexes" not in described and len(described["AttributeDefinitions"]) == 1
    with pytest.raises(ClientError, match="does not have the specified index"):
        dynamodb.query(**asked)


def test_settings_are_kept_and_described(dynamodb):
    dynamodb.create_table(
        TableName="settings", **{**SIMPLE, "BillingMode": "PROVISIONED"},
        ProvisionedThroughput={"ReadCapacityUnits": 5, "WriteCapacityUnits": 6}, TableClass="STANDARD",
        SSESpecification={"Enabled": True},
    )  # fmt: skip
    described = dynamodb.describe_table(TableName="settings")["Table"]
    assert described["ProvisionedThroughput"]["WriteCapacityUnits"] == 6 and "BillingModeSummary" not in described
    assert described["SSEDescription"]["Status"] == "ENABLED"
    dynamodb.update_table(TableName="settings", BillingMode="PAY_PER_REQUEST")
    assert dynamodb.describe_table(TableName="settings")["Table"]["ProvisionedThroughput"]["ReadCapacityUnits"] == 0

    arn = described["TableArn"]
    dynamodb.tag_resource(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}])
    dynamodb.untag_resource(ResourceArn=arn, TagKeys=["a"])
    assert dynamodb.list_tags_of_resource(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": ""}]
    assert dynamodb.describe_time_to_live(TableName="settings")["TimeToLiveDescription"] == {
        "TimeToLiveStatus": "DISABLED"
    }
    dynamodb.update_time_to_live(
        TableName="settings", TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
    )
    assert dynamodb.describe_time_to_live(TableName="settings")["TimeToLiveDescription"]["AttributeName"] == "until"
    assert dynamodb.describe_limits()["TableMaxReadCapacityUnits"] > 0
    assert dynamodb.describe_endpoints()["Endpoints"][0]["Address"]


def test_items_are_counted(dynamodb):
    dynamodb.create_table(TableName="counted", **SIMPLE)
    for i in range(3):
        dynamodb.put_item(TableName="counted", Item={"k": {"S": str(i)}})
    assert dynamodb.describe_table(TableName="counted")["Table"]["ItemCount"] == 3


@pytest.mark.parametrize(("changes", "words"), [
    ({"TableName": "ab"}, "at least 3 characters long"),
    ({"TableName": "a b c"}, "regular expression pattern"),
    ({"AttributeDefinitions": [{"AttributeName": "x", "AttributeType": "S"}]}, "not defined in AttributeDefinitions"),
    ({"AttributeDefinitions": [{"AttributeName": n, "AttributeType": "S"} for n in "kx"]}, "does not exactly match"),
    ({"AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "M"}]}, "enum value set"),
    ({"KeySchema": [{"AttributeName": "k", "KeyType": "RANGE"}]}, "not a HASH key type"),
    ({"KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}] * 2}, "not a RANGE key type"),
    ({"BillingMode": "PROVISIONED"}, "must both be specified"),
    ({"ProvisionedThroughput": {"ReadCapacityUnits": 1, "WriteCapacityUnits": 1}}, "PAY_PER_REQUEST"),
    ({"StreamSpecification": {"StreamEnabled": True}}, "StreamSpecification is not supported"),
    ({"LocalSecondaryIndexes": [OWNER]}, "LocalSecondaryIndexes is not supported"),
    ({"GlobalSecondaryIndexes": [{**OWNER, "Projection": {"ProjectionType": "SOME"}}]}, "enum value set"),
])  # fmt: skip
def test_wrong_definitions_are_refused(dynamodb, changes, words):
    with pytest.raises(ClientError) as raised:
        dynamodb.create_table(**{"TableName": "wrong", **SIMPLE, **changes})
    assert raised.value.response["Error"]["Code"] == "ValidationException" and words in message(raised)


def test_an_update_of_nothing_is_refused(dynamodb, table):
    with pytest.raises(ClientError, match="At least one of"):
        dynamodb.update_table(TableName=table)


def test_tables_and_items_outlive_the_node(tmp_path):
    runtime = real_runtime()

    def services(client):
        return [open_dynamodb(client, runtime.clock, runtime.random)]

    with serving(str(tmp_path / "data"), services) as face:
        face.boto("dynamodb").create_table(TableName="kept", **SIMPLE)
        face.boto("dynamodb").put_item(TableName="kept", Item={"k": {"S": "1"}, "n": {"N": "5"}})
    with serving(str(tmp_path / "data"), services) as face:
        assert face.boto("dynamodb").scan(TableName="kept")["Items"] == [{"k": {"S": "1"}, "n": {"N": "5"}}]
