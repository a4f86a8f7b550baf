"""Lost races and lost answers: whoever comes between, no write is carried out on what it was not evaluated on."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from streamkit.client.client import AsyncClient
from streamkit.errors import ConnectionFailed
from streamkit.gateway.app import Gateway
from streamkit.gateway.dynamodb import open_dynamodb
from streamkit.http.listener import HttpListener
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.notes import Notes
from streamkit.runtime.real import real_runtime
from streamkit.security.credentials import Authenticator
from tests.gateway.calling import SeededRandom, StandingClock, gateway, request
from tests.gateway.dynamodb.face import serving

KEY = {"leaseKey": {"S": "shardId-1"}}
DEFINITION = {
    "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "leaseKey", "AttributeType": "S"}], "BillingMode": "PAY_PER_REQUEST",
}  # fmt: skip


class LocalNotes:
    """Notes of a store in memory; `before_swap` may do something in between, `after_swap` may lose the answer."""

    def __init__(self):
        self.notes = Notes(MemoryStore(StandingClock()), SeededRandom())
        self.before_swap = self.after_swap = None

    async def read_note(self, key):
        return await self.notes.read(key)

    async def swap_notes(self, swaps):
        if self.before_swap is not None:
            act, self.before_swap = self.before_swap, None
            await act()
        revision = await self.notes.swap(swaps)
        if self.after_swap is not None:
            act, self.after_swap = self.after_swap, None
            act()
        return revision

    async def list_notes(self, prefix, *, after="", count_max=1000):
        return (await self.notes.page(prefix, after, count_max, 1 << 30))[0]


class Table:
    """One table and the calls of it, without a socket."""

    def __init__(self):
        self.notes = LocalNotes()
        self.gateway = gateway(open_dynamodb(self.notes, StandingClock(), SeededRandom()))

    async def call(self, operation, /, **body):
        asked = request(
            operation, json.dumps(body).encode(), "application/x-amz-json-1.0", target="DynamoDB_20120810"
        )
        answer = await self.gateway.handle(asked)
        return answer.status, json.loads(bytes(answer.body) or b"null")

    async def renew(self, counter, **other):
        return await self.call(
            "UpdateItem", TableName="leases", Key=KEY, Expected={"leaseCounter": {"Value": {"N": str(counter)}}},
            AttributeUpdates={"leaseCounter": {"Value": {"N": str(counter + 1)}, "Action": "PUT"}}, **other,
        )  # fmt: skip

    async def item(self):
        return (await self.call("GetItem", TableName="leases", Key=KEY))[1].get("Item")


@pytest.fixture
async def table():
    made = Table()
    assert (await made.call("CreateTable", TableName="leases", **DEFINITION))[0] == 200
    assert (await made.call("PutItem", TableName="leases", Item={**KEY, "leaseCounter": {"N": "0"}}))[0] == 200
    return made


async def test_who_comes_between_makes_the_condition_fail(table):
    async def steal():
        assert (await table.renew(0))[0] == 200

    table.notes.before_swap = steal
    status, answer = await table.renew(0)

    assert status == 400 and answer["__type"].endswith("#ConditionalCheckFailedException")
    assert (await table.item())["leaseCounter"] == {"N": "1"}


async def test_who_comes_between_elsewhere_in_the_item_changes_nothing(table):
    async def touch():
        await table.call(
            "UpdateItem", TableName="leases", Key=KEY, UpdateExpression="SET seen = :s",
            ExpressionAttributeValues={":s": {"S": "x"}},
        )  # fmt: skip

    table.notes.before_swap = touch
    assert (await table.renew(0))[0] == 200
    assert await table.item() == {**KEY, "leaseCounter": {"N": "1"}, "seen": {"S": "x"}}


async def test_a_lost_answer_is_unavailable_and_the_call_again_shows_that_it_was_done(table):
    def lose():
        raise ConnectionFailed("the answer was lost", address="elsewhere", sent=True)

    table.notes.after_swap = lose
    assert (await table.renew(0))[0] == 503

    status, answer = await table.renew(0, ReturnValuesOnConditionCheckFailure="ALL_OLD")
    assert status == 400 and answer["Item"]["leaseCounter"] == {"N": "1"}


async def test_an_item_written_while_its_table_is_made_again_is_not_in_the_new_table(table):
    async def replace():
        await table.call("DeleteTable", TableName="leases")
        await table.call("CreateTable", TableName="leases", **DEFINITION)

    table.notes.before_swap = replace
    await table.call("PutItem", TableName="leases", Item={"leaseKey": {"S": "late"}})

    assert (await table.call("Scan", TableName="leases"))[1]["Count"] == 0


async def test_of_two_that_create_a_table_one_is_told_so(table):
    async def create():
        assert (await table.call("CreateTable", TableName="twice", **DEFINITION))[0] == 200
        assert (await table.call("PutItem", TableName="twice", Item=KEY))[0] == 200

    table.notes.before_swap = create
    status, answer = await table.call("CreateTable", TableName="twice", **DEFINITION)
    assert status == 400 and answer["__type"].endswith("#ResourceInUseException")
    assert (await table.call("Scan", TableName="twice"))[1]["Count"] == 1      # what the other one wrote is there


async def test_a_slow_creator_removes_nothing_of_a_newer_table(table):
    """Between its creation and its look for orphans the table is deleted, made again, and written to."""
    async def replace():
        await table.call("DeleteTable", TableName="slow")
        await table.call("CreateTable", TableName="slow", **DEFINITION)
        await table.call("PutItem", TableName="slow", Item=KEY)

    listing = table.notes.list_notes

    async def late(prefix, **options):
        table.notes.list_notes = listing
        await replace()
        return await listing(prefix, **options)

    table.notes.list_notes = late
    assert (await table.call("CreateTable", TableName="slow", **DEFINITION))[0] == 200
    assert (await table.call("Scan", TableName="slow"))[1]["Count"] == 1


async def test_a_table_changed_by_two_at_once_has_both_changes(table):
    arn = "arn:aws:dynamodb:us-east-1:000000000000:table/leases"

    async def tag():
        await table.call("TagResource", ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}])

    table.notes.before_swap = tag
    await table.call("TagResource", ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}])
    assert len((await table.call("ListTagsOfResource", ResourceArn=arn))[1]["Tags"]) == 2


async def test_a_transaction_is_evaluated_anew_when_one_of_its_items_has_changed(table):
    async def renew():
        await table.renew(0)

    table.notes.before_swap = renew
    status, answer = await table.call("TransactWriteItems", TransactItems=[
        {"ConditionCheck": {
            "TableName": "leases", "Key": KEY, "ConditionExpression": "leaseCounter = :zero",
            "ExpressionAttributeValues": {":zero": {"N": "0"}},
        }},
        {"Put": {"TableName": "leases", "Item": {"leaseKey": {"S": "other"}}}},
    ])  # fmt: skip
    assert status == 400 and [each["Code"] for each in answer["CancellationReasons"]] == [
        "ConditionalCheckFailed", "None"
    ]  # fmt: skip
    assert (await table.call("Scan", TableName="leases"))[1]["Count"] == 1


async def test_a_writer_that_always_loses_is_told_to_come_back(table, monkeypatch):
    async def soon(seconds):
        assert 0 < seconds <= 0.25

    async def never(swaps):
        return None

    monkeypatch.setattr("streamkit.gateway.dynamodb.store.asyncio.sleep", soon)
    monkeypatch.setattr(table.notes, "swap_notes", never)
    status, answer = await table.renew(0)
    assert status == 400 and answer["__type"].endswith("#ProvisionedThroughputExceededException")


async def test_a_table_is_full_at_its_bound(table, monkeypatch):
    monkeypatch.setattr("streamkit.gateway.dynamodb.store.ITEMS_MAX", 5)
    statuses = [
        (await table.call("PutItem", TableName="leases", Item={"leaseKey": {"S": str(i)}}))[0] for i in range(6)
    ]
    assert statuses == [200] * 4 + [400] * 2
    assert (await table.renew(0))[0] == 200                         # what is there can be changed
    assert (await table.call("Scan", TableName="leases"))[1]["Count"] == 5


async def test_everything_at_once_in_one_table_leaves_a_sound_one(table):
    async def worker(name):
        won = 0
        for _ in range(30):
            counter = int((await table.item())["leaseCounter"]["N"])
            won += (await table.renew(counter))[0] == 200
        return won

    won = await asyncio.gather(*map(worker, range(8)))
    assert (await table.item())["leaseCounter"] == {"N": str(sum(won))}


def test_two_nodes_of_the_service_share_a_table_and_its_races(tmp_path):
    """Two services, each with a client of its own, over one node's metadata."""
    runtime = real_runtime()
    directory = str(tmp_path / "data")
    with serving(directory, lambda client: [open_dynamodb(client, runtime.clock, runtime.random)]) as face:
        first = face.boto("dynamodb")

        async def second_face():
            client = await AsyncClient(face.native).__aenter__()
            served = Gateway(
                [open_dynamodb(client, runtime.clock, runtime.random)], Authenticator(), runtime.clock, runtime.random
            )
            return client, await HttpListener.open(runtime.network, "127.0.0.1:0", served.handle)

        client, listener = face.run(second_face())
        address, face.address = face.address, listener.address
        second = face.boto("dynamodb")
        face.address = address
        first.create_table(TableName="shared", **DEFINITION)
        second.put_item(TableName="shared", Item={**KEY, "leaseCounter": {"N": "0"}})

        def race(writer, counter):
            try:
                (first, second)[writer % 2].update_item(
                    TableName="shared", Key=KEY, Expected={"leaseCounter": {"Value": {"N": str(counter)}}},
                    AttributeUpdates={"leaseCounter": {"Value": {"N": str(counter + 1)}, "Action": "PUT"}},
                )  # fmt: skip
            except ClientError as error:
                assert error.response["Error"]["Code"] == "ConditionalCheckFailedException"
                return False
            return True

        with ThreadPoolExecutor(12) as pool:
            for counter in range(8):
                assert sum(pool.map(race, range(12), [counter] * 12)) == 1
        face.run(listener.close())
        face.run(client.close())
