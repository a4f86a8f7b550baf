"""The class style: one object a shard, with the methods below; each may be `def` or `async def`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import Checkpointer


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardContext:
    """What a processor learns before its first record.

    position: sequence of the first record that is not finished. fencing_token: grows with every change of owner.
    """

    stream: str
    shard: str
    application: str
    worker: str
    position: int
    fencing_token: int
    previous_owner_crashed: bool
    takeovers_without_progress: int


class RecordProcessor:
    """Subclass it, override `process`; an instance serves one shard, from `initialize` to `lease_lost`.

    A `process` that raises is called again with the same records, or with halves of them until the failing one is
    alone; it never is passed over unless on_exhausted="skip" was chosen.
    """

    def initialize(self, ctx: ShardContext) -> Any:
        """Once, before records. Repeated when it raises."""

    def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> Any:
        """Records of the shard, in order, one call at a time."""
        raise TypeError(f"{type(self).__name__} must define process(batch, checkpointer)")

    def shutdown_requested(self, checkpointer: Checkpointer) -> Any:
        """The lease goes soon, and is still held until `checkpointer.deadline`: flush and checkpoint here."""

    def lease_lost(self) -> Any:
        """The last call. Checkpoints raise LeaseLost."""
