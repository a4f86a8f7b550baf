"""From a range of records to the chunks it is written as: decode, transform, part, format, compress, name.

Runs in a thread; knows nothing of leases and stores. A record that fails anywhere is told apart, and the others go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import msgspec

from streamkit._core.batch import Record
from streamkit.delivery.buffer import Range
from streamkit.delivery.chunk import Chunk, Failure, Plan, Takes, chunk_id
from streamkit.delivery.compression import Compression
from streamkit.delivery.formats.format import Format
from streamkit.delivery.names import NAME_BYTES_MAX, NoSuchField, Template, object_name
from streamkit.errors import DecodeFailed, InvalidUse

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose records they are."""

    delivery: str
    stream: str
    shard: str
    shard_uuid: bytes


@dataclass(slots=True)
class Staged:
    """A range, ready to be written. dropped: records that the transformation left out."""

    chunks: list[Chunk] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Transform:
    """A function of a record's value that returns another, a list of them, or None to leave the record out."""

    function: Callable[[Any], Any]
    annotation: Any

    @classmethod
    def of(cls, function: Callable[[Any], Any]) -> Transform:
        """Raises InvalidUse for what cannot be called with one value."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
            hints = get_type_hints(function)
        except (TypeError, ValueError, NameError) as cause:
            raise InvalidUse(f"the signature of {function!r} cannot be read: {cause}",
                             try_="write def change(value: dict) -> dict | None", argument="transform") from cause
        needed = [each for each in parameters if each.default is each.empty]
        if inspect.iscoroutinefunction(function) or not parameters or len(needed) > 1:
            raise InvalidUse(f"{getattr(function, '__name__', function)!r} is no plain function of one value",
                             try_="write def change(value: dict) -> dict | None", argument="transform")
        return cls(function, hints.get(parameters[0].name))


class Pipeline:
    """What a delivery does with every range of every shard."""

    def __init__(
        self, *, form: Format, compression: Compression, template: Template | None, transform: Transform | None,
        takes: Takes, version: int = 1,
    ) -> None:
        if form.compresses and compression.encoding:
            raise InvalidUse(f"{type(form).__name__} compresses inside", try_="leave the delivery's compression out",
                             argument="compression")
        self._format = form
        self._compression = compression
        self._template = template
        self._transform = transform
        self._takes = takes
        self._version = version
        parting = template is not None and template.needs_values
        self._decodes = transform is not None or takes == "values" or parting

    def stage(self, gathered: Range, plan: Plan, origin: Origin) -> Staged:
        """The chunks of a planned range."""
        staged = Staged()
        if not self._decodes and not (self._template is not None and self._template.is_parting):
            data = [payload for part in gathered.parts for payload in part.values()]
            records = _Records(gathered)
            staged.chunks += self._chunks((), data, (), records, plan, origin, staged)
            return staged
        rows: dict[tuple[str, ...], tuple[list[bytes], list[Any], list[Record[Any]]]] = {}
        for part in gathered.parts:
            for record in part:
                self._take(record, rows, staged)
        for names, (data, values, taken) in sorted(rows.items(), key=lambda entry: entry[0]):
            staged.chunks += self._chunks(names, data, values, taken, plan, origin, staged)
        return staged

    def _take(
        self, record: Record[Any], rows: dict[tuple[str, ...], tuple[list[bytes], list[Any], list[Record[Any]]]],
        staged: Staged,
    ) -> None:
        """One record, into the part it belongs to."""
        stage = "decode"
        try:
            made = [record.value] if self._decodes else [None]
            if self._transform is not None:
                stage = "transform"
                changed = self._transform.function(made[0])
                if changed is None:
                    staged.dropped += 1
                    return
                made = changed if isinstance(changed, list) else [changed]
            stage = "name"
            placed = [() if self._template is None else self._template.part_of(record, value) for value in made]
            stage = "transform"
            data = [record.data] if self._transform is None else [_payload(value) for value in made]
        except Exception as error:         # the user's code, and the user's data
            code = {"decode": "decode_failed", "name": "name.no_such_field"}.get(stage, "transform.failed")
            if isinstance(error, DecodeFailed):
                code = error.code
            text = str(error) if isinstance(error, NoSuchField | DecodeFailed) else f"{type(error).__name__}: {error}"
            staged.failures.append(Failure(record, stage, code, text))
            return
        for where, payload, value in zip(placed, data, made, strict=True):
            kept = rows.setdefault(where, ([], [], []))
            kept[0].append(payload)
            kept[1].append(value)
            kept[2].append(record)

    def _chunks(
        self, names: tuple[str, ...], data: list[bytes], values: Sequence[Any], records: Sequence[Record[Any]],
        plan: Plan, origin: Origin, staged: Staged,
    ) -> list[Chunk]:
        """One, or none when nothing of it fits."""
        identity = chunk_id(plan.id, "\x00".join(names))
        body, name, unfit = b"", "", set()
        if self._takes == "body":
            formatted = self._format.encode(data)
            unfit = {each.index for each in formatted.unfit}
            staged.failures += [
                Failure(records[each.index], "format", each.code, each.message) for each in formatted.unfit
            ]
            body = self._compression.compress(formatted.body, identity)
        if len(unfit) == len(data):
            return []
        if self._template is not None:
            name = self._name(names, plan, origin, identity)
        return [Chunk(
            id=identity, plan=plan.id, delivery=origin.delivery, stream=origin.stream, shard=origin.shard,
            shard_uuid=origin.shard_uuid, start=plan.start, end=plan.end, oldest=plan.oldest, name=name, body=body,
            content_type=self._format.content_type, content_encoding=self._compression.encoding,
            values=values if self._takes == "values" else (), data=data if self._takes == "data" else (),
            records=records, count=len(data) - len(unfit),
        )]  # fmt: skip

    def _name(self, names: tuple[str, ...], plan: Plan, origin: Origin, identity: str) -> str:
        assert self._template is not None, "who names has a template"
        prefix = self._template.fill(names, plan.oldest, stream=origin.stream, shard=origin.shard,
                                     delivery=origin.delivery)
        extension = self._format.extension + self._compression.extension
        local = plan.oldest.astimezone(self._template.zone)
        room = NAME_BYTES_MAX - len(object_name("", origin.delivery, self._version, local, identity, extension))
        while len(prefix.encode()) > room:             # values may be of any length; the chunk's id tells them apart
            prefix = prefix[:-1]
        return object_name(prefix, origin.delivery, self._version, local, identity, extension)


class _Records(Sequence[Record[Any]]):
    """Records of a range, made when they are asked for."""

    def __init__(self, gathered: Range) -> None:
        self._parts = gathered.parts
        self._count = gathered.count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record[Any]]:
        for part in self._parts:
            yield from part

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._count))]
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def _payload(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return value.encode() if isinstance(value, str) else _encode(value)
