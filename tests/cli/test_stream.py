"""`streamkit stream`: the life of a stream from the shell."""

import pytest

from tests.cli.conftest import run_command


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


def test_shards_are_split_merged_and_scaled(served):
    served.run("stream", "create", "shape", "--shards", "2")

    split = served.run("stream", "split", "shape", "shardId-000000000001")
    merged = served.run("stream", "merge", "shape", "0", "2")
    (scaled,) = served.json("stream", "scale", "shape", "6")
    again = served.run("stream", "scale", "shape", "6")

    assert split == (
        "shape   closed shardId-000000000001   opened shardId-000000000002, shardId-000000000003   3 open\n"
    )
    assert merged.split()[-2:] == ["2", "open"]
    assert (scaled["shard_count"], len(scaled["opened"])) == (6, 6)
    assert again == "shape   6 shards already, nothing to do\n"
    described = served.run("stream", "describe", "shape")
    assert described.count("open ") == 6
    assert "closed, see 2 3" in described


def test_a_shard_is_split_where_its_traffic_parts(served):
    served.run("stream", "create", "busy")
    few = run_command("stream", "split", "busy", "0", "--at", "traffic", "--url", served.url)
    served.run("put", "busy", "--lines", "--key-from", "data.k", stdin="".join(f'{{"k": "{n}"}}\n' for n in range(400)))

    split = run_command("stream", "split", "busy", "1", "--at", "traffic", "--url", served.url)
    (described,) = served.json("stream", "describe", "busy")

    assert few.returncode == 0 and b"took no records in the last 10 minutes: split in the middle" in few.stderr
    assert split.returncode == 0 and b"of the bytes of the last 10 minutes lie below it" in split.stderr
    assert all(shard["put_bytes_rate"] >= 0 for shard in described["shards"])
    served.run("stream", "create", "hot")
    served.run("put", "hot", "--lines", "--key", "customer-7", stdin="x\n" * 100)
    first, second = served.fail("stream", "split", "hot", "0", "--at", "traffic", exit_code=2)
    assert "a split cannot spread one key" in first and second.startswith("try:   ")


def test_a_change_is_left_and_waited_for_later(served):
    served.run("stream", "create", "later")
    (begun,) = served.json("stream", "scale", "later", "--shards", "3", "--no-wait")
    shown = served.run("stream", "wait", begun["id"])

    assert begun["schema"] == "streamkit.operation.v1" and begun["id"].startswith("later/")
    assert shown.endswith("3 open\n") or "nothing to do" in shown
    assert served.run("stream", "wait", begun["id"]).startswith("later")
    assert "say once how many" in served.fail("stream", "scale", "later", exit_code=2)[0]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [(["split", "bent", "two"], 2, "is not a shard"), (["split", "bent", "0", "--at", "half"], 2, "not a hash key"),
     (["split", "bent", "0", "--at", str(2**128)], 2, "not a hash key"), (["split", "bent", "7"], 1, "has no shard"),
     (["merge", "bent", "0"], 2, "two different shards"), (["merge", "bent", "0", "2"], 2, "not neighbours"),
     (["scale", "bent", "0"], 2, "1..10000"), (["scale", "no-such", "2"], 1, "does not exist")],
)  # fmt: skip
def test_impossible_shapes_say_what_to_do(served, arguments, exit_code, word):
    if "bent" not in served.run("stream", "list", "-q").split():
        served.run("stream", "create", "bent", "--shards", "3")
    first, second = served.fail("stream", *arguments, exit_code=exit_code)

    assert word in first
    assert second.startswith("try:   ")


def test_settings_are_altered_and_what_is_not_named_stays(served):
    served.run("stream", "create", "altered", "--retention-bytes", "1073741824")

    hours = served.run("stream", "alter", "altered", "--retention-hours", "48")
    (facts,) = served.json("stream", "alter", "altered", "--retention-bytes", "none", "--record-bytes-max", "2097152")
    quiet = served.run("stream", "alter", "altered", "--retention-bytes", "5000000", "-q")

    assert hours == "altered altered   retention 48 h   at most 1.0 GiB a shard   records up to 1.0 MiB\n"
    assert facts["schema"] == "streamkit.stream.v1"
    assert (facts["retention_hours"], facts["retention_bytes"], facts["record_bytes_max"]) == (48, None, 2_097_152)
    assert quiet == "altered\n"
    (facts,) = served.json("stream", "describe", "altered")
    assert (facts["retention_hours"], facts["retention_bytes"], facts["record_bytes_max"]) == (48, 5_000_000, 2_097_152)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [(["rigid"], 2, "nothing is said"), (["rigid", "--retention-hours", "1"], 2, "24..8760"),
     (["rigid", "--retention-bytes", "lots"], 2, "not a number of bytes"),
     (["rigid", "--retention-bytes", "0"], 2, "retention_bytes must be"),
     (["rigid", "--record-bytes-max", "99999999"], 2, "record_bytes_max must be"),
     (["no-such", "--retention-hours", "48"], 1, "does not exist")],
)  # fmt: skip
def test_impossible_alterations_say_what_to_do(served, arguments, exit_code, word):
    if "rigid" not in served.run("stream", "list", "-q").split():
        served.run("stream", "create", "rigid")
    first, second = served.fail("stream", "alter", *arguments, exit_code=exit_code)

    assert word in first
    assert second.startswith("try:   ")
