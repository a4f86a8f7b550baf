"""JSON records as columns: Parquet and ORC files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from streamkit.delivery.formats.format import Formatted, Unfit
from streamkit.delivery.formats.schemas import arrow, arrow_schema
from streamkit.errors import InvalidUse

PARQUET_COMPRESSIONS = ("none", "snappy", "gzip", "zstd", "lz4", "brotli")
ORC_COMPRESSIONS = ("none", "snappy", "zlib", "zstd", "lz4")
_BLOCK_BYTES = 16 << 20                    # of JSON read at a time; grows with the largest record


class _Columns:
    """What both have in common: records are read as JSON into the schema's columns.

    Members that the schema does not have are left out, those that a record does not have are null. A record that is no
    JSON object, or does not fit, is unfit.
    """

    compresses = True
    content_type = "application/octet-stream"

    def __init__(self, schema: Any) -> None:
        self.schema = arrow_schema(schema)

    def encode(self, rows: Sequence[bytes]) -> Formatted:
        """As Format."""
        # One that holds nothing would hide another that holds two documents.
        full = [index for index, row in enumerate(rows) if row and not row.isspace()]
        unfit = [Unfit(index, "format.parse_error", "it is empty") for index in set(range(len(rows))).difference(full)]
        tables: list[Any] = []
        self._read([rows[index] for index in full], full, tables, unfit)
        unfit.sort(key=lambda each: each.index)
        if not tables:
            return Formatted(b"", unfit)
        body = io.BytesIO()
        self._write(arrow().concat_tables(tables), body)
        return Formatted(body.getvalue(), unfit)

    def _read(self, rows: Sequence[bytes], places: Sequence[int], tables: list[Any], unfit: list[Unfit]) -> None:
        """Whole if it can be, else in halves until the unfit ones stand alone. places: indexes of the rows."""
        if not rows:
            return
        json, invalid = arrow("json"), arrow().ArrowInvalid
        body = b"\n".join(rows)
        try:
            table = json.read_json(
                io.BytesIO(body),
                json.ReadOptions(use_threads=False, block_size=max(_BLOCK_BYTES, len(body) + 1)),
                json.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore",
                                  newlines_in_values=body.count(b"\n") != len(rows) - 1),
            )
            if table.num_rows == len(rows):
                tables.append(table)
                return
            problem = f"{table.num_rows} documents in {len(rows)} records"
        except invalid as error:
            problem = str(error)
        if len(rows) == 1:
            code = "format.parse_error" if _is_no_json(problem) else "format.malformed"
            unfit.append(Unfit(places[0], code, problem))
            return
        half = len(rows) // 2
        self._read(rows[:half], places[:half], tables, unfit)
        self._read(rows[half:], places[half:], tables, unfit)

    def _write(self, table: Any, body: io.BytesIO) -> None:
        raise TypeError(f"{type(self).__name__} says how it is written")


class Parquet(_Columns):
    """Parquet files. schema: as formats.schemas.arrow_schema. row_group_records: how many lie together."""

    extension = ".parquet"

    def __init__(self, schema: Any, *, compression: str = "zstd", row_group_records: int = 1 << 20) -> None:
        super().__init__(schema)
        self._compression = _checked(compression, PARQUET_COMPRESSIONS)
        self._row_group_records = row_group_records

    def _write(self, table: Any, body: io.BytesIO) -> None:
        arrow("parquet").write_table(table, body, compression=self._compression, row_group_size=self._row_group_records)


class Orc(_Columns):
    """ORC files. schema: as formats.schemas.arrow_schema; stripe_bytes: how much lies together."""

    extension = ".orc"

    def __init__(self, schema: Any, *, compression: str = "zstd", stripe_bytes: int = 64 << 20) -> None:
        super().__init__(schema)
        self._compression = _checked(compression, ORC_COMPRESSIONS)
        self._stripe_bytes = stripe_bytes

    def _write(self, table: Any, body: io.BytesIO) -> None:
        compression = "uncompressed" if self._compression == "none" else self._compression
        arrow("orc").write_table(table, body, compression=compression, stripe_size=self._stripe_bytes)


def _is_no_json(problem: str) -> bool:
    return "JSON parse error" in problem and "Column" not in problem


def _checked(compression: str, known: tuple[str, ...]) -> str:
    if compression not in known:
        raise InvalidUse(f"compression {compression!r} is not one of this format's",
                         try_=f"one of {', '.join(known)}", argument="compression")
    return compression
