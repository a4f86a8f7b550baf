"""The measurements of the Kinesis API on streamkit in their tiny form; what the page makes of rounds and targets."""

import asyncio
import json

import pytest

from benchmarks.gateway.__main__ import measure
from benchmarks.gateway.api import (
    Api,
    RequestFailed,
    failed_count,
    milliseconds_behind,
    next_iterator,
    put_records_body,
    record_count,
    unchunked,
)
from benchmarks.gateway.pushes import WORKS
from benchmarks.gateway.report import TARGETS, TITLES, Table, markdown, verdicts, write_json
from benchmarks.gateway.systems import OWN, SYSTEMS, left_out
from benchmarks.gateway.works import FULL, TINY, quantiles
from benchmarks.peers.loading import load

FACTS = ("date", "cpu", "cores", "memory_gib", "kernel", "file_system", "python", "streamkit", "commit", "load",
         "sync")
HOST = dict.fromkeys(FACTS, 1)


def line(work, *, records=1000, seconds=1.0, p50=1.0, p99=5.0, **more):
    return {
        "work": work, "records": records, "bytes": records * 100, "seconds": seconds, "server_cpu_seconds": 0.5,
        "client_cpu_seconds": 0.25, "server_peak_mib": 100.0, "checked": "yes", "connections": 4,
        "latencies_ms": {"p50": p50, "p99": p99, "max": 9.0}, **more,
    }  # fmt: skip


def table_of(*lines, limits=FULL, peers=()):
    table = Table(HOST, limits, 1)
    table.versions[OWN] = "0.1"
    for each in lines:
        table.add(OWN, 1, each)
    for name, each in peers:
        table.versions[name] = "1"
        table.add(name, 1, each)
    return table


def test_every_work_runs_on_streamkit_in_its_tiny_form(tmp_path):
    own = SYSTEMS[0]

    lines = measure(own, list(WORKS), TINY)

    assert [found["work"] for found in lines] == list(WORKS)
    for found in lines:
        assert "error" not in found, found
        assert found["records"] > 0
        assert found["server_peak_mib"] > 0
        assert found["checked"]
    table = table_of(*lines, limits=TINY)
    page = markdown(table)
    assert all(title in page for title in TITLES.values())
    assert "Not the full form" in page
    write_json(tmp_path / "gateway.json", table)
    document = json.loads((tmp_path / "gateway.json").read_text())
    assert {target["work"] for target in document["targets"]} == {work for work, _, _ in TARGETS}


def test_targets_are_met_or_missed():
    table = table_of(
        line("put-records", records=300_000), line("put-record", records=7_999), line("subscribe", p50=3.0, p99=15.1),
        line("listing", seconds=0.5, shards=10_000), line("stalled", grown_mib=3, put_mib=300),
        peers=[("moto", line("put-records", records=10_000)), ("kinesalite", line("put-records", records=15_000))],
    )  # fmt: skip

    found = {(work, target): (got, met) for work, target, got, met in verdicts(table)}

    assert found["put-records", "at least 300,000 records/s"] == ("300,000/s", True)
    assert found["put-records", "at least 20 × the best of the three"] == ("20.0 × kinesalite (15,000/s)", True)
    assert found["put-record", "at least 8,000 requests/s"] == ("7,999/s", False)
    assert found["subscribe", "p50 ≤ 3 ms, p99 ≤ 15 ms"] == ("3.0 / 15.1 ms", False)
    assert found["stalled", "memory does not move"] == ("+3 MiB while 300 MiB were put", True)
    assert found["listing", "below 1 s for 10,000 shards"] == ("0.50 s for 10,000 shards", True)
    assert "get-records" not in {work for work, _ in found}


def test_what_failed_and_who_is_absent_is_on_the_page():
    table = table_of({"work": "put-records", "error": "the | disk broke"})
    table.absent["moto"] = "moto is not here"

    page = markdown(table)

    assert "| streamkit | disk | round 1: the / disk broke |" in page
    assert "| moto | memory | moto is not here |" in page
    assert "* streamkit, put-records: round 1: the / disk broke" in page
    assert table.failed


def test_without_others_there_is_no_ratio():
    table = table_of(line("put-records"))

    assert ("nobody to compare with", None) in {(got, met) for _, _, got, met in verdicts(table)}


def test_a_client_that_breaks_leaves_a_reason_for_each_work():
    found = load("benchmarks.gateway.client", {"works": ["put-records", "stalled"], "work_seconds_max": 10})

    assert [one["work"] for one in found] == ["put-records", "stalled"]
    assert all("KeyError" in one["error"] for one in found)


def test_works_that_a_system_does_not_know_are_left_out():
    assert left_out("moto", "subscribe")
    assert left_out("moto", "put-records-cbor")
    assert not left_out("kinesalite", "put-records-cbor")
    assert not any(left_out(OWN, work) for work in WORKS)
    assert set(TITLES) == set(WORKS)


# -- the client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("close", [False, True])
async def test_answers_arrive_whole_however_they_are_cut(size, chunked, close):
    body = b'{"x":"' + b"y" * 500 + b'"}'
    closing = b"Connection: close\r\n" if close else b""
    if chunked:
        answer = b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (
            closing, body[:5], len(body) - 5, body[5:]
        )  # fmt: skip
    else:
        answer = b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (closing, len(body), body)

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(2)
            for at in range(0, len(answer), size):
                writer.write(answer[at : at + size])
                await writer.drain()
            if close:
                writer.close()
                return

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        api = Api(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        (connection,) = await api.connect(1)

        assert [await connection.ask(api.request("ListStreams", {})) for _ in range(3)] == [body] * 3

        connection.close()


async def test_an_error_and_an_end_are_failures():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nNope")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        api = Api(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        (connection,) = await api.connect(1)

        with pytest.raises(RequestFailed, match="400 Nope"):
            await connection.ask(api.request("ListStreams", {}))
        with pytest.raises(RequestFailed, match="the connection ended"):
            await connection.ask(api.request("ListStreams", {}))


def test_what_is_looked_for_in_answers():
    assert failed_count(b'{"FailedRecordCount": 3, "Records": []}') == 3
    assert failed_count(b"\xa1qFailedRecordCount\x00", cbor=True) == 0
    with pytest.raises(RequestFailed):
        failed_count(b"{}")
    answer = b'{"Records":[{"PartitionKey":"a"},{"PartitionKey":"b"}],"MillisBehindLatest":7,"NextShardIterator":"AA="}'
    assert (record_count(answer), next_iterator(answer), milliseconds_behind(answer)) == (2, "AA=", 7)
    assert next_iterator(b"{}") == ""
    assert unchunked(b"3;x=y\r\nabc\r\n0\r\n\r\n", 0) == b"abc"
    assert unchunked(b"3\r\nab", 0) is None
    body = json.loads(put_records_body("s", [b"1", b"2"], ["a", "b"]))
    assert body == {"StreamName": "s", "Records": [{"Data": "MQ==", "PartitionKey": "a"},
                                                   {"Data": "Mg==", "PartitionKey": "b"}]}  # fmt: skip


def test_quantiles_are_in_milliseconds():
    assert quantiles([0.001 * i for i in range(1, 101)])["p50"] == pytest.approx(51)
