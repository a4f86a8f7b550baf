"""The child's side of the MultiLangDaemon's protocol, for programs that were written for amazon_kclpy.

    kcl.KCLProcess(MyProcessor()).run()

A line comes in, the processor is called, a line with the status goes out; a checkpoint is a line out and a line in
between. `streamkit kcl` is the other side, and so is the KCL's own daemon.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import IO, Any, ClassVar

from streamkit.compat.checkpoints import INVALID_STATE
from streamkit.compat.checkpoints import CheckpointError as CheckpointError
from streamkit.compat.kclpy import dispatch, messages
from streamkit.compat.kclpy.v2.processor import V1toV2Processor
from streamkit.compat.kclpy.v3.processor import V2toV3Processor


class _Lines:
    """The three files."""

    def __init__(self, input_file: IO[str], output_file: IO[str], error_file: IO[str]) -> None:
        self.input_file = input_file
        self.output_file = output_file
        self.error_file = error_file

    def read(self) -> Any:
        """The next message; None at the end."""
        line = self.input_file.readline()
        return json.loads(line, object_hook=dispatch.message_decode) if line else None

    def write(self, response: dict[str, Any]) -> None:
        # Begins on a new line, whatever the processor printed before.
        self.output_file.write(f"\n{json.dumps(response)}\n")
        self.output_file.flush()


class Checkpointer:
    """Asks the parent for a checkpoint and waits for its answer."""

    def __init__(self, io_handler: _Lines) -> None:
        self._lines = io_handler

    def checkpoint(self, sequence_number: str | None = None, sub_sequence_number: int | None = None) -> None:
        """At that record, or at all that was delivered. Raises CheckpointError."""
        self._lines.write(
            {"action": "checkpoint", "sequenceNumber": sequence_number, "subSequenceNumber": sub_sequence_number}
        )
        answer = self._lines.read()
        if not isinstance(answer, messages.CheckpointInput):
            raise CheckpointError(INVALID_STATE)
        if answer.error is not None:
            raise CheckpointError(answer.error)


class RecordProcessorBase:
    """The first generation: plain arguments."""

    version: ClassVar[int] = 1

    def initialize(self, shard_id: str) -> None:
        raise TypeError(f"{type(self).__name__} must define initialize(shard_id)")

    def process_records(self, records: list[messages.Record], checkpointer: Any) -> None:
        raise TypeError(f"{type(self).__name__} must define process_records(records, checkpointer)")

    def shutdown(self, checkpointer: Any, reason: str) -> None:
        raise TypeError(f"{type(self).__name__} must define shutdown(checkpointer, reason)")

    def shutdown_requested(self, checkpointer: Any) -> None:
        """The lease goes soon; nothing is done about it unless this is overridden."""


class KCLProcess:
    """A child: one shard, one processor."""

    def __init__(
        self, record_processor: Any, input_file: IO[str] = sys.stdin, output_file: IO[str] = sys.stdout,
        error_file: IO[str] = sys.stderr,
    ) -> None:
        self._lines = _Lines(input_file, output_file, error_file)
        self.checkpointer = Checkpointer(self._lines)
        self.processor = record_processor
        if record_processor.version == 1:
            self.processor = V2toV3Processor(V1toV2Processor(record_processor))
        elif record_processor.version == 2:
            self.processor = V2toV3Processor(record_processor)

    def run(self) -> None:
        """Until the parent closes our input. What the processor raises is printed and passed over, as the KCL does."""
        while (message := self._lines.read()) is not None:
            try:
                message.dispatch(self.checkpointer, self.processor)
            except Exception:
                traceback.print_exc(file=self._lines.error_file)
                self._lines.error_file.flush()
            self._lines.write({"action": "status", "responseFor": message.action})
