"""Record processors of the second generation: each method takes one object; `shutdown` is the end, whatever the reason.

Called by `streamkit.compat.processors`, and by `KCLProcess` in a child.
"""

from __future__ import annotations

from typing import Any, ClassVar

from streamkit.compat.kclpy.messages import InitializeInput, ProcessRecordsInput, ShutdownInput, ShutdownRequestedInput


class RecordProcessorBase:
    """Subclass it; an instance serves one shard."""

    version: ClassVar[int] = 2

    def initialize(self, initialize_input: InitializeInput) -> None:
        raise TypeError(f"{type(self).__name__} must define initialize(initialize_input)")

    def process_records(self, process_records_input: ProcessRecordsInput) -> None:
        raise TypeError(f"{type(self).__name__} must define process_records(process_records_input)")

    def shutdown(self, shutdown_input: ShutdownInput) -> None:
        raise TypeError(f"{type(self).__name__} must define shutdown(shutdown_input)")

    def shutdown_requested(self, shutdown_requested_input: ShutdownRequestedInput) -> None:
        """The lease goes soon; nothing is done about it unless this is overridden."""


class V1toV2Processor(RecordProcessorBase):
    """A processor of the first generation, called as one of the second."""

    def __init__(self, delegate: Any) -> None:
        self.delegate = delegate

    def initialize(self, initialize_input: InitializeInput) -> None:
        self.delegate.initialize(initialize_input.shard_id)

    def process_records(self, process_records_input: ProcessRecordsInput) -> None:
        self.delegate.process_records(process_records_input.records, process_records_input.checkpointer)

    def shutdown(self, shutdown_input: ShutdownInput) -> None:
        self.delegate.shutdown(shutdown_input.checkpointer, shutdown_input.reason)

    def shutdown_requested(self, shutdown_requested_input: ShutdownRequestedInput) -> None:
        asked = getattr(self.delegate, "shutdown_requested", None)     # the very first had no such method
        if asked is not None:
            asked(shutdown_requested_input.checkpointer)
