"""A condition as its callers use it: parsed once, then held against whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streamkit._core.batch import Batch
from streamkit._core.conditions import NO_ROUTE, ROUTES_MAX, route
from streamkit._core.conditions import Condition as Tree
from streamkit.model.codec import AUTO, JSON, Codec, Decoding, find_codec


class Condition:
    """`Condition("data.total > 100")`; raises InvalidQuery, with line and column, for what cannot be understood.

    codec: what payloads are read as, as for a consumer; what "auto" cannot read as its content type or JSON is not
    decoded at all. undecided: records so far that could not be judged; they do not match.
    """

    def __init__(self, text: str, codec: Codec | str = "auto") -> None:
        from streamkit.expressions.grammar import parse  # the grammar's library takes a while to load

        self.text = text
        self.codec = codec
        self.undecided = 0
        self.tree: Tree = parse(text)
        self.decode, self.decode_for = payload_readers(codec)

    def judged(self, batch: Batch[Any]) -> tuple[bytes, int]:
        """(uint8[len(batch)]: 0 for a record that matches, else NO_ROUTE; how many could not be judged), uncounted."""
        return route(batch, (self.tree,), self.decode, self.decode_for)

    def routes(self, batch: Batch[Any]) -> bytes:
        """uint8[len(batch)]: 0 for a record that matches, else NO_ROUTE."""
        found, undecided = self.judged(batch)
        self.undecided += undecided
        return found

    def matching(self, batch: Batch[Any]) -> Batch[Any]:
        """The records that match, in their order; the batch itself when all do. Raises CorruptBatch."""
        return batch.chosen(self.routes(batch))


class Router:
    """Several conditions: the first that holds says where a record goes. Raises InvalidQuery, or ValueError (too many).

    conditions: None holds for what no other condition takes; at most one is None.
    """

    def __init__(self, conditions: Sequence[Condition | None], codec: Codec | str = "auto") -> None:
        if len(conditions) > ROUTES_MAX:
            raise ValueError(f"{len(conditions)} conditions; at most {ROUTES_MAX}")
        self.undecided = 0
        self._places = [place for place, condition in enumerate(conditions) if condition is not None]
        self._trees = tuple(condition.tree for condition in conditions if condition is not None)
        default = next((place for place, condition in enumerate(conditions) if condition is None), NO_ROUTE)
        self._decode, self._decode_for = payload_readers(codec)
        self._table = bytes([*self._places, *([default] * (256 - len(self._places)))])

    def routes(self, batch: Batch[Any]) -> bytes:
        """uint8[len(batch)]: the place of the condition that takes the record; NO_ROUTE when none does."""
        found, undecided = route(batch, self._trees, self._decode, self._decode_for)
        self.undecided += undecided
        return found.translate(self._table)


Reader = Callable[[bytes], Any]


def payload_readers(codec: Codec | str) -> tuple[Reader | None, Callable[[str], Reader] | None]:
    """(decode, decode_for) as `_core.conditions.route` takes them. Raises InvalidUse for an unknown codec."""
    found = find_codec(codec)
    decoding = Decoding(found)
    if found is AUTO:
        return msgspec.json.Decoder().decode, decoding.decode_for      # what is no JSON is no bytes here, but unread
    return (msgspec.json.Decoder().decode if found is JSON else found.decode), None
