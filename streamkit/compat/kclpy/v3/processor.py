"""Record processors of the third generation: the end of a lease and the end of a shard are different things.

Called by `streamkit.compat.processors`, and by `KCLProcess` in a child.
"""

from __future__ import annotations

from typing import Any, ClassVar

from streamkit.compat.kclpy.messages import (
    InitializeInput,
    LeaseLostInput,
    ProcessRecordsInput,
    ShardEndedInput,
    ShutdownInput,
    ShutdownRequestedInput,
)


class RecordProcessorBase:
    """Subclass it; an instance serves one shard."""

    version: ClassVar[int] = 3

    def initialize(self, initialize_input: InitializeInput) -> None:
        raise TypeError(f"{type(self).__name__} must define initialize(initialize_input)")

    def process_records(self, process_records_input: ProcessRecordsInput) -> None:
        raise TypeError(f"{type(self).__name__} must define process_records(process_records_input)")

    def lease_lost(self, lease_lost_input: LeaseLostInput) -> None:
        raise TypeError(f"{type(self).__name__} must define lease_lost(lease_lost_input)")

    def shard_ended(self, shard_ended_input: ShardEndedInput) -> None:
        raise TypeError(f"{type(self).__name__} must define shard_ended(shard_ended_input)")

    def shutdown_requested(self, shutdown_requested_input: ShutdownRequestedInput) -> None:
        """The lease goes soon; nothing is done about it unless this is overridden."""


class V2toV3Processor(RecordProcessorBase):
    """A processor of the second generation, called as one of the third."""

    def __init__(self, delegate: Any) -> None:
        self.delegate = delegate

    def initialize(self, initialize_input: InitializeInput) -> None:
        self.delegate.initialize(initialize_input)

    def process_records(self, process_records_input: ProcessRecordsInput) -> None:
        self.delegate.process_records(process_records_input)

    def lease_lost(self, lease_lost_input: LeaseLostInput) -> None:
        self.delegate.shutdown(ShutdownInput.zombie())

    def shard_ended(self, shard_ended_input: ShardEndedInput) -> None:
        self.delegate.shutdown(ShutdownInput.terminate(shard_ended_input.checkpointer))

    def shutdown_requested(self, shutdown_requested_input: ShutdownRequestedInput) -> None:
        self.delegate.shutdown_requested(shutdown_requested_input)
