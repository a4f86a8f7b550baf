"""The class style: one object a shard, with the methods below; each may be `def` or `async def`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamkit._core.batch import Batch, Record
from streamkit.consumer.checkpointer import Checkpointer


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checkpoint that an earlier owner announced and did not make.

    position, sub_position: as in ShardContext, where the checkpoint would have been. state: what came with it, bytes.
    """

    position: int
    sub_position: int
    state: bytes

    def covers(self, record: Record[Any]) -> bool:
        """Whether the record lies before it: what was announced may have been done for this one."""
        return record.end_place <= (self.position, self.sub_position)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardContext:
    """What a processor learns before its first record.

    position: sequence of the first record that is not finished; sub_position: user records that are finished inside it,
    if it is an aggregate. checkpoint_number: sequence number of the last record that is finished, as far as it is known
    without that record (its arrival is not); "" when there is none. fencing_token: grows with every change of owner.
    app_state: what was stored with the checkpoint at `position`, `checkpointer.checkpoint(…, state=…)`; b"" if nothing
    was. prepared: what `checkpointer.prepare` announced and no checkpoint has reached. shard_uuid: 16 bytes, others for
    a shard of a stream that was deleted and made again.
    """

    stream: str
    shard: str
    application: str
    worker: str
    position: int
    fencing_token: int
    previous_owner_crashed: bool
    takeovers_without_progress: int
    sub_position: int = 0
    checkpoint_number: str = ""
    app_state: bytes = b""
    prepared: Prepared | None = None
    shard_uuid: bytes = b""


class RecordProcessor:
    """Subclass it, override `process`; an instance serves one shard, from `initialize` to `lease_lost`.

    A `process` that raises is called again with the same records, or with halves of them until the failing one is
    alone; it never is passed over unless on_exhausted="skip" was chosen.

    `shard_ended(checkpointer)`, if there is such a method, is called once all records of a shard that was split or
    merged are processed, instead of shutdown_requested; when it returns the end is checkpointed, and its children
    begin. When it raises it is called again; after five times what on_exhausted says happens, but nothing is passed
    over for "dead_letter". Without it, checkpoints that cover the last record end the shard.
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
