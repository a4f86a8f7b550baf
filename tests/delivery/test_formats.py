"""Bodies, read back by other programs; records that do not fit are told, and the others are there."""

from __future__ import annotations

import gzip
import io
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime

import lz4.frame
import msgspec
import pyarrow as pa
import pytest
import zstandard
from pyarrow import orc, parquet

from streamkit.delivery.compression import compression
from streamkit.delivery.formats.columns import Orc, Parquet
from streamkit.delivery.formats.lines import Lines
from streamkit.delivery.formats.schemas import arrow_schema
from streamkit.errors import InvalidUse


class Item(msgspec.Struct):
    sku: str
    count: int


class Order(msgspec.Struct):
    id: int
    name: str | None = None
    at: datetime | None = None
    items: list[Item] = []


@dataclass
class Plain:
    id: int
    ok: bool


ROWS = [b'{"id":%d,"name":"n","at":"2026-01-02T03:04:05.5Z","items":[{"sku":"a","count":2}],"other":1}' % i
        for i in range(1000)]  # fmt: skip


def read(form: Parquet | Orc, body: bytes) -> pa.Table:
    return (parquet if isinstance(form, Parquet) else orc).read_table(io.BytesIO(body))


@pytest.mark.parametrize("kind", [Parquet, Orc])
def test_json_becomes_columns_that_others_read(kind):
    form = kind(Order)

    formatted = form.encode(ROWS)

    table = read(form, formatted.body)
    assert formatted.unfit == []
    assert table["id"].to_pylist() == list(range(1000))
    assert table.slice(0, 1).to_pylist() == [{
        "id": 0, "name": "n", "at": datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC), "items": [{"sku": "a", "count": 2}],
    }]  # fmt: skip
    assert form.encode(ROWS) == formatted, "the same rows give the same bytes"


@pytest.mark.parametrize("kind", [Parquet, Orc])
def test_what_does_not_fit_is_told_and_the_rest_is_there(kind):
    rows = list(ROWS)
    wrong = {
        3: b'{"id":"no"}', 500: b"not json", 501: b"", 502: b" \n", 503: b'{"id":1}\n{"id":2}', 504: b"5", 505: b"[]",
        999: b'{"id":1',
    }  # fmt: skip
    for index, row in wrong.items():
        rows[index] = row
    rows[10] = b'{\n "id": 10\n}'

    formatted = kind(Order).encode(rows)

    assert [each.index for each in formatted.unfit] == sorted(wrong)
    assert {each.code for each in formatted.unfit} == {"format.malformed", "format.parse_error"}
    assert read(kind(Order), formatted.body)["id"].to_pylist() == [i for i in range(1000) if i not in wrong]


def test_when_nothing_fits_there_is_no_body():
    formatted = Parquet(Order).encode([b"x", b""])
    assert formatted.body == b""
    assert [each.index for each in formatted.unfit] == [0, 1]


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (Order, ["id", "name", "at", "items"]), (Plain, ["id", "ok"]), ({"a": "int64", "b": pa.string()}, ["a", "b"]),
        (pa.schema([("z", pa.date32())]), ["z"]),
    ],
)  # fmt: skip
def test_schemas_come_from_classes_mappings_and_arrow(of, names):
    assert arrow_schema(of).names == names


@pytest.mark.parametrize("of", [int, list[int], {"a": "no such type"}, "x"])
def test_what_has_no_columns_is_refused(of):
    with pytest.raises(InvalidUse):
        arrow_schema(of)


def test_lines_are_payloads_with_something_between():
    assert Lines().encode([b"a", b"b"]).body == b"a\nb\n"
    assert Lines(b"").encode([b"abc", b"abc"]).body == b"abcabc"
    assert Lines().encode([]).body == b""


@pytest.mark.parametrize(
    ("name", "extension", "encoding", "decode"),
    [
        ("none", "", "", bytes),
        ("gzip", ".gz", "gzip", gzip.decompress),
        ("zip", ".zip", "zip", lambda body: zipfile.ZipFile(io.BytesIO(body)).read("a-name")),
        ("zstd", ".zst", "zstd", lambda body: zstandard.ZstdDecompressor().decompress(body)),
        ("lz4", ".lz4", "lz4", lz4.frame.decompress),
    ],
)
def test_each_compression_is_read_by_an_independent_decoder(name, extension, encoding, decode):
    made = compression(name)
    body = b"\n".join(ROWS)

    assert (made.extension, made.encoding) == (extension, encoding)
    assert decode(made.compress(body, "a-name")) == body
    assert made.compress(body, "a-name") == made.compress(body, "a-name")


def test_an_unknown_compression_is_refused():
    with pytest.raises(InvalidUse, match="unknown"):
        compression("brotli")
    with pytest.raises(InvalidUse, match="compression"):
        Parquet(Order, compression="zip")
