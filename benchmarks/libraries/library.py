"""What the suite asks of a client library: put records one call each, and run a handler over them.

One file a peer, the only code that knows it. Everything runs in the loading process, whose CPU seconds are measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from benchmarks.peers.packages import PYTHON

KEYS = [f"customer-{number}" for number in range(1000)]


class Order(msgspec.Struct):
    """What a handled record holds: about 200 bytes as JSON."""

    id: int
    customer: str
    total: float
    items: list[str]
    note: str


decode_order = msgspec.json.Decoder(Order).decode
Take = Callable[[Order], None]


class Library(ABC):
    """facts: what the servers said about themselves when they had started."""

    python = PYTHON                    # the interpreter of the loading process
    batches = False                    # whether a handler may take whole batches

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def create(self, log: str) -> None:
        """An empty stream or topic of one shard, with as many copies as the servers were started for."""

    @abstractmethod
    async def put(self, log: str, values: Sequence[bytes]) -> None:
        """One call of the library a record, keys in turn from KEYS; returns when it has taken them all."""

    @abstractmethod
    async def flush(self) -> None:
        """Returns when everything is acknowledged. Raises what failed."""

    @abstractmethod
    async def handle(self, log: str, take: Take, *, batches: bool) -> None:
        """Decodes every record from the first on, gives it to `take`, and notes how far it came as the library does
        by default. Until it is cancelled. batches: take whole batches from the library and loop over them."""

    @abstractmethod
    async def close(self) -> None: ...
