"""What a named producer asks of the broker, for its Sender.

There is one instance of a name at a time. Opening the name raises its epoch in the coordination store; opening a
shard leaves a mark of that epoch in the shard's log, behind which nothing of an elder instance is stored. So a shard is
opened before the first batch goes there. A child of a split is, too: it knows nobody yet, and the broker asks the store
whether the one who opens it is still the newest.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from streamkit.model.shard import Shard
from streamkit.producer.lane import Lane
from streamkit.protocol.messages import ProducerGiven, ProducerOpened


class Name(NamedTuple):
    """What a producer is called, and which of all that were ever called so it is."""

    name: str
    instance: bytes


class Naming(NamedTuple):
    """name: None for a producer without one, whose shards need no opening."""

    client: Asking
    name: Name | None
    timeout_ms: int

    async def open(self, lane: Lane) -> None:
        """Raises ProducerFenced, and whatever asking raises."""
        opened = await self._open(lane, lane.identity)
        lane.next_sequence = opened.next
        lane.told_closed = lane.told_closed or opened.closed
        lane.opened = True

    async def renew(self, lane: Lane) -> tuple[ProducerGiven, int]:
        """Another identity for one shard, and the number it begins with. Raises as `open`.

        Of a name it is the next epoch: still the one that a newer instance shuts out.
        """
        if self.name is None:
            return await self.client.new_producer(), 0
        identity = await self.client.new_producer(*self.name, renew=True)
        return identity, (await self._open(lane, identity)).next

    async def _open(self, lane: Lane, identity: ProducerGiven) -> ProducerOpened:
        assert self.name is not None, "only a name has elder instances"
        return await self.client.open_producer(lane.shard, *self.name, identity, timeout_ms=self.timeout_ms)


class Asking(Protocol):
    """Of client.AsyncClient."""

    async def new_producer(self, name: str = "", instance: bytes = b"", *, renew: bool = False) -> ProducerGiven: ...
    async def open_producer(
        self, shard: Shard, name: str, instance: bytes, given: ProducerGiven, *, timeout_ms: int | None = None
    ) -> ProducerOpened: ...
