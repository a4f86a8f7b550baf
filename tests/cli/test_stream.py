"""`streamkit stream`: the life of a stream from the shell."""

import pytest


def test_a_stream_is_created_listed_described_and_deleted(served):
    assert served.run("stream", "create", "life", "--shards", "4", "--retention", "48h") == (
        "created life   4 shards   retention 48 h   fsync\n"
    )
    assert "life" in served.run("stream", "list", "-q").splitlines()
    listed = served.run("stream", "list")
    described = served.run("stream", "describe", "life")
    deleted = served.run("stream", "delete", "life", "--yes")

    assert listed.split()[:7] == ["STREAM", "SHARDS", "RECORDS", "RETENTION", "KEPT", "DURABILITY", "STATUS"]
    assert described.count("shardId-") == 4
    assert deleted.startswith("deleted life")
    assert "life" not in served.run("stream", "list", "-q").splitlines()


def test_json_and_people_are_told_the_same(served):
    served.run("stream", "create", "twins", "--shards", "2", "--durability", "os")
    (facts,) = served.json("stream", "describe", "twins")

    assert facts["schema"] == "streamkit.stream.v1"
    assert (facts["name"], facts["shard_count"], facts["durability"]) == ("twins", 2, "os")
    assert facts["retention_hours"] == 168
    ranges = [shard["hash_range"] for shard in facts["shards"]]
    assert ranges == [{"start": "0", "end": str(2**127)}, {"start": str(2**127), "end": str(2**128)}]
    assert [shard["id"] for shard in facts["shards"]] == served.run("stream", "describe", "twins", "-q").split()


def test_a_wrong_name_suggests_the_near_one(served):
    served.run("stream", "create", "orders-near")
    first, second = served.fail("stream", "describe", "ordrs-near")

    assert first.startswith('error: stream "ordrs-near" does not exist')
    assert 'did you mean "orders-near"?' in first
    assert second == "try:   streamkit stream list"


def test_creating_twice_fails_and_changes_nothing(served):
    served.run("stream", "create", "once", "--shards", "3")
    first, _ = served.fail("stream", "create", "once", "--shards", "5")

    assert first.startswith("error: ") and "once" in first
    assert served.json("stream", "describe", "once")[0]["shard_count"] == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["bad name"], "stream name"), (["x", "--shards", "0"], "shards must be"),
     (["x", "--retention", "1h"], "24..8760"), (["x", "--retention", "soon"], "not a duration")],
)  # fmt: skip
def test_impossible_settings_are_misuse(served, arguments, word):
    first, second = served.fail("stream", "create", *arguments, exit_code=2)

    assert word in first and second.startswith("try:   ")


def test_deleting_without_a_terminal_wants_yes_and_names_the_loss(served):
    served.run("stream", "create", "precious")
    served.run("put", "precious", "a", "b", "c", "--key", "k")
    first, second = served.fail("stream", "delete", "precious", exit_code=2)

    assert "records" in first
    assert second == "try:   streamkit stream delete precious --yes"
    assert "precious" in served.run("stream", "list", "-q").split()
