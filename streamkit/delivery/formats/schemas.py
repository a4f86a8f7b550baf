"""Columns of files: from a class, from an Arrow schema, or from names and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import inspect

from streamkit.errors import InvalidUse
from streamkit.runtime.libraries import library


def arrow(part: str = "") -> Any:
    """pyarrow, or a module of it. Raises MissingLibrary."""
    return library(f"pyarrow.{part}" if part else "pyarrow", "arrow")


def arrow_schema(of: Any) -> Any:
    """of: a pyarrow.Schema; {"id": "int64", …} with Arrow's names of types; or a msgspec.Struct, dataclass, TypedDict.

    Raises InvalidUse for what has no columns, MissingLibrary.
    """
    pa = arrow()
    if isinstance(of, pa.Schema):
        return of
    if isinstance(of, Mapping):
        return pa.schema([pa.field(name, _named(pa, name, kind)) for name, kind in of.items()])
    try:
        info = inspect.type_info(of)
    except TypeError as cause:
        raise _no_schema(of) from cause
    return pa.schema(_fields(pa, info))


def _fields(pa: Any, info: inspect.Type) -> list[Any]:
    if not isinstance(info, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        raise _no_schema(info)
    return [pa.field(field.encode_name, _type(pa, field.type)) for field in info.fields]


def _type(pa: Any, info: inspect.Type) -> Any:
    made: Any
    match info:
        case inspect.BoolType():
            made = pa.bool_()
        case inspect.IntType():
            made = pa.int64()
        case inspect.FloatType():
            made = pa.float64()
        case inspect.StrType() | inspect.UUIDType() | inspect.EnumType() | inspect.LiteralType():
            made = pa.string()
        case inspect.DateTimeType():
            made = pa.timestamp("us", tz="UTC")
        case inspect.DateType():
            made = pa.date32()
        case inspect.DecimalType():
            made = pa.decimal128(38, 9)
        case inspect.ListType() | inspect.SetType() | inspect.FrozenSetType() | inspect.VarTupleType():
            made = pa.list_(_type(pa, info.item_type))
        case inspect.UnionType() if len(rest := [each for each in info.types if not _is_none(each)]) == 1:
            made = _type(pa, rest[0])
        case inspect.StructType() | inspect.DataclassType() | inspect.TypedDictType():
            made = pa.struct(_fields(pa, info))
        case _:
            raise InvalidUse(f"{type(info).__name__} has no column type", try_="pass a pyarrow.Schema",
                             argument="schema")
    return made


def _is_none(info: inspect.Type) -> bool:
    return isinstance(info, inspect.NoneType)


def _named(pa: Any, name: str, kind: Any) -> Any:
    if isinstance(kind, pa.DataType):
        return kind
    try:
        return pa.type_for_alias(kind)
    except (ValueError, TypeError) as cause:
        raise InvalidUse(f"column {name!r}: {kind!r} is no type that Arrow knows by that name",
                         try_='"int64", "double", "string", "timestamp[ms]", or a pyarrow type',
                         argument="schema") from cause  # fmt: skip


def _no_schema(of: Any) -> InvalidUse:
    shown = of.__name__ if isinstance(of, type) else type(of).__name__
    return InvalidUse(f"{shown} has no named fields to make columns of",
                      try_="pass a msgspec.Struct, a dataclass, a pyarrow.Schema or {'name': 'type'}",
                      argument="schema")  # fmt: skip
