"""Objects on a real S3 server: made once, recognised when they come again, never another's."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from streamkit.delivery import Buffer, Chunk, Delivery, ObjectSink, Parquet
from streamkit.delivery.compression import compression
from streamkit.delivery.formats.lines import Lines
from streamkit.delivery.pipeline import Pipeline
from streamkit.errors import InvalidUse, SinkMisused
from streamkit.testing import Node
from tests.delivery.batches import ORIGIN, plan_of, range_of
from tests.delivery.s3 import S3, s3_server
from tests.end_to_end.processes import free_port
from tests.waiting import until


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as served:
        yield served


def sink(s3: S3, names: str = "", **options: Any) -> ObjectSink:
    return ObjectSink(f"s3://lake/{names}", **(s3.settings | options))


def chunk_for(made: ObjectSink, values: list[Any], base: int = 0, kind: str = "none") -> Chunk:
    gathered = range_of(values, base)
    pipeline = Pipeline(form=Lines(), compression=compression(kind), template=made.template, transform=None,
                        takes="body")  # fmt: skip
    [chunk] = pipeline.stage(gathered, plan_of(gathered), ORIGIN).chunks
    return chunk


async def test_a_chunk_that_comes_again_is_one_object_and_says_what_it_is(s3: S3):
    made = sink(s3, "once/{arrived:%Y}/")
    chunk = chunk_for(made, [1, 2, 3], kind="gzip")

    await made.write(chunk)
    await made.write(chunk)

    found = s3.boto.get_object(Bucket="lake", Key=chunk.name)
    assert chunk.name.startswith("once/2026/lake-1-2026-09-21-") and chunk.name.endswith(f"{chunk.id}.gz")
    assert gzip.decompress(found["Body"].read()) == b"1\n2\n3\n"
    assert found["ContentEncoding"] == "gzip" and found["ContentType"] == "application/octet-stream"
    assert found["Metadata"]["streamkit-plan"] == chunk.plan
    assert [name for name in s3.bodies() if name.startswith("once/")] == [chunk.name]


async def test_an_object_of_another_is_not_touched(s3: S3):
    made = sink(s3, "other/")
    chunk = chunk_for(made, [1])
    s3.boto.put_object(Bucket="lake", Key=chunk.name, Body=b"somebody's")

    with pytest.raises(SinkMisused, match="another's"):
        await made.write(chunk)
    assert s3.bodies()[chunk.name] == b"somebody's"


async def test_a_changed_function_does_not_replace_what_its_plan_wrote(s3: S3):
    made = sink(s3, "changed/")
    chunk = chunk_for(made, [1])
    await made.write(chunk)
    await made.write(replace(chunk, body=b"another answer"))
    assert s3.bodies()[chunk.name] == b"1\n"


async def test_where_conditions_are_ignored_the_same_bytes_are_written_again(s3: S3):
    made = sink(s3, "over/", overwrite=True)
    chunk = replace(chunk_for(made, [1]), body=bytes(range(256)) * 80_000)      # 20 MB travel in parts
    await made.write(chunk)
    await made.write(chunk)
    assert s3.bodies()[chunk.name] == chunk.body


async def test_an_object_is_taken_away_and_one_that_is_not_there_too(s3: S3):
    made = sink(s3, "gone/")
    chunk = chunk_for(made, [1])
    await made.write(chunk)
    await made.delete(chunk.name)
    await made.delete(chunk.name)
    assert chunk.name not in s3.bodies()


async def test_no_bucket_is_for_a_person_and_no_server_is_for_time(s3: S3):
    missing = ObjectSink("s3://no-such-lake/x/", **s3.settings)
    with pytest.raises(SinkMisused, match="no-such-lake"):
        await missing.write(chunk_for(missing, [1]))
    down = sink(s3, endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Exception, match=r"(?i)connect|error") as caught:
        await down.write(chunk_for(down, [1]))
    assert not isinstance(caught.value, SinkMisused)


@pytest.mark.parametrize("url", ["lake/x", "s3://", "s3:///x", "nothing://lake/x", "s3://lake/{nothing}/"])
def test_a_url_that_names_no_bucket_is_refused(url: str):
    with pytest.raises(InvalidUse):
        ObjectSink(url)


def test_a_stream_becomes_parquet_parted_by_day_and_country(s3: S3, tmp_path: Path):
    schema = {"id": "int64", "country": "string"}
    with Node() as node:
        node.create_stream("orders", shards=2)
        with node.producer("orders") as producer:
            for number in range(500):
                producer.put({"id": number, "country": ("DE", "SE")[number % 2]}, key=str(number))
        delivery = Delivery(
            "lake", source="orders", sink=sink(s3, "orders/day={arrived:%Y-%m-%d}/country={data.country}/"),
            format=Parquet(schema), buffer=Buffer(bytes_max=4_000, seconds_max=0.2), url=node.url,
        )  # fmt: skip
        with delivery:
            until(lambda: delivery.progress.records == 500)
    bodies = {name: body for name, body in s3.bodies().items() if name.startswith("orders/")}
    rows = [row for body in bodies.values() for row in pq.read_table(io.BytesIO(body)).to_pylist()]
    assert sorted(row["id"] for row in rows) == list(range(500))
    assert {name.split("/")[2] for name in bodies} == {"country=DE", "country=SE"}
    assert all(name.endswith(".parquet") for name in bodies)
