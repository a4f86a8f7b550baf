"""What the suite asks of a system: start it, load it through its client, stop it.

A System lives in the suite's process and owns servers; its Client lives in the loading process. Both are the only code
that knows a peer. `works.py` does the measuring with any Client, so that all systems do the same work.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.servers import Servers

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build" / "peers"

# What survives when an acknowledged record's machines lose power at once. Figures are compared within a class first.
DISK = "disk"                  # acknowledged after fsync, on a majority of the copies
PAGE_CACHE = "page cache"      # acknowledged before; a file is synced some time later, or when the kernel likes
MEMORY = "memory"              # never on a disk

Acknowledged = Callable[[BaseException | None], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a system. setting: what makes it so, in the system's own words."""

    key: str
    name: str
    copies: int
    durability: str
    setting: str


class Client(ABC):
    """The loading side. One log (stream, topic, partition …) at a time, all values in the order in which they were put.

    facts: what System.start() said about the running servers.
    """

    chunk_records = 5000           # between two looks at the clock: produce() is given this many at a time

    def __init__(self, variant: str, facts: dict[str, Any]) -> None:
        self.variant, self.facts = variant, facts

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def create(self, log: str) -> None:
        """An empty log with the variant's copies and durability, ready for the first record."""

    @abstractmethod
    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        """Puts in batches, as many under way as the client does well with; what it returns from may be under way."""

    @abstractmethod
    async def single(self, log: str, values: Sequence[bytes]) -> None:
        """The same with one record in each request."""

    @abstractmethod
    async def flush(self) -> None:
        """Returns when everything is acknowledged. Raises what failed."""

    @abstractmethod
    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        """Puts one record now, without company. acknowledged: called on the event loop."""

    async def pause(self, seconds: float) -> None:
        """Until the next record is due; a client that must be driven drives itself here."""
        await asyncio.sleep(seconds)

    @abstractmethod
    def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        """Values from the first on, as many at a time as the client gives; endless."""

    @abstractmethod
    async def close(self) -> None: ...


class System(ABC):
    """One file in `systems`. setup: how it is installed and run, and what is fair about that, for the report."""

    variants: tuple[Variant, ...]
    setup: str
    latency_rate = 1000            # records a second; slower systems say a rate that they can hold
    client_class: type[Client]

    @abstractmethod
    def absent(self) -> str:
        """Why it cannot be run here; empty when it can."""

    @abstractmethod
    def install(self) -> None:
        """Into build/peers, with the ordinary client of its registry. Raises CalledProcessError."""

    @abstractmethod
    def version(self) -> str:
        """Of server and client, as they say themselves."""

    @abstractmethod
    def start(self, variant: Variant, directory: Path) -> Servers:
        """Returns when it takes requests. Raises CheckFailed when it does not."""
