"""`streamkit segment inspect`: read a data file without a node, checking every sum."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Group, Invocation, common, pass_invocation
from streamkit.cli.rendering import count, emit, instant, size

if TYPE_CHECKING:
    from streamkit._core.batch import Header

_ROW = "{:>12}  {:>14}  {:>8}  {:>10}  {:<5}  {:>5}  {:<24}  {:>12}  {}"


@click.group(cls=Group, no_args_is_help=True)
def segment() -> None:
    """Read data files without a node."""


@segment.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--summary", is_flag=True, help="Only the last line: what the file holds and whether it is sound.")
@click.option("--shard-uuid", metavar="HEX", help="The shard's identity (default: the directory's name).")
@common
@pass_invocation
def inspect(invocation: Invocation, file: str, summary: bool, shard_uuid: str | None) -> None:
    """List a segment's batches, checking every sum.

    Reads only; the node may be running. Exits 1 when something is damaged.
    """
    uuid = _uuid(file, shard_uuid)
    batches = records = 0
    first: Header | None = None
    last: Header | None = None
    ending: dict[str, Any] = {}
    if not (summary or invocation.json):
        headers = ("POSITION", "SEQUENCE", "RECORDS", "BYTES", "CODEC", "EPOCH", "APPENDED", "PRODUCER", "")
        click.echo(_ROW.format(*headers).rstrip())
    for position, found in walk_file(Path(file), uuid):
        if isinstance(found, dict):
            ending = found
            continue
        first, last = first or found, found
        batches += 1
        records += 0 if found.is_control else found.record_count
        if not summary:
            _show(invocation, position, found)
    facts = {
        "file": file, "batches": batches, "records": records, "sequence_start": first.base_sequence if first else None,
        "sequence_end": last.end_sequence if last else None, "checked_header_sums": uuid is not None, **ending,
    }  # fmt: skip
    if invocation.json:
        emit("segment", facts)
    else:
        span = f"sequences {count(first.base_sequence)} to {count(last.end_sequence)}" if first and last else "empty"
        click.echo(f"{file}   {count(batches)} batches   {count(records)} records   {span}   {ending['end']}")
    if ending["damaged"]:
        raise click.exceptions.Exit(1)


def walk_file(path: Path, uuid: bytes | None) -> Iterator[tuple[int, Header | dict[str, Any]]]:
    """(position, header) of each sound batch, then (position, how the file ends). What follows damage is not read."""
    from streamkit._core.batch import check_batch, shard_seed
    from streamkit._core.segment import TRAILER_SIZE, read_trailer
    from streamkit.errors import CorruptBatch

    with path.open("rb") as file:
        if not path.stat().st_size:
            yield 0, {"end": "no bytes", "damaged": False, "position": 0}
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            position = 0
            while position < len(data):
                if bytes(data[position : position + 4]) == b"SKT1":
                    with data[position : position + TRAILER_SIZE] as trailer:
                        sound = uuid is None or read_trailer(trailer, shard_seed(uuid)) is not None
                    text = "sealed" if sound else f"damaged at byte {position}: the trailer's sum differs"
                    yield position, {"end": text, "damaged": not sound, "position": position}
                    return
                if not any(data[position : position + 112]):
                    yield position, {"end": "open, then zeros", "damaged": False, "position": position}
                    return
                try:
                    with data[position:] as rest:
                        header = check_batch(rest, uuid)
                except CorruptBatch as error:
                    text = f"damaged at byte {position}: {error}"
                    yield position, {"end": text, "damaged": True, "position": position}
                    return
                yield position, header
                position += header.batch_bytes
            yield position, {"end": "open", "damaged": False, "position": position}


def _uuid(file: str, given: str | None) -> bytes | None:
    from streamkit.errors import InvalidUse

    if given is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{32}", given.replace("-", "")):
            raise InvalidUse(f"{given!r} is not a shard's identity", try_="write 32 hexadecimal digits", value=given)
        return bytes.fromhex(given.replace("-", ""))
    name = Path(file).resolve().parent.name.replace("-", "")
    return bytes.fromhex(name) if re.fullmatch(r"[0-9a-f]{32}", name) else None


def _show(invocation: Invocation, position: int, header: Header) -> None:
    flags = "epoch start" if header.is_epoch_start else "control" if header.is_control else ""
    if invocation.json:
        emit(
            "batch",
            {
                "position": position, "base_sequence": header.base_sequence, "records": header.record_count,
                "bytes": header.batch_bytes, "raw_bytes": header.raw_bytes, "codec": header.codec,
                "epoch": header.epoch, "appended": instant(header.append_time_ms),
                "producer_id": header.producer_id, "producer_epoch": header.producer_epoch,
                "producer_sequence": header.producer_sequence, "control": header.is_control,
            },
        )  # fmt: skip
        return
    producer = f"{header.producer_id}:{header.producer_sequence}" if header.producer_id else "–"
    click.echo(
        _ROW.format(
            position, header.base_sequence, header.record_count, size(header.batch_bytes), header.codec, header.epoch,
            instant(header.append_time_ms) or "–", producer, flags,
        ).rstrip()
    )  # fmt: skip
