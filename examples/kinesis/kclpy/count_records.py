"""A record processor of the KCL in Python: counts the records of a shard and checkpoints after each batch.

The MultiLangDaemon starts one of these for each shard that it holds and talks to it through stdin and stdout, so
nothing else may be printed. Records are noted in the file that COUNT_FILE names, a line each.
"""

import os

from amazon_kclpy import kcl
from amazon_kclpy.checkpoint_error import CheckpointError
from amazon_kclpy.v3 import processor


class CountRecords(processor.RecordProcessorBase):
    """Counts one shard; the records of a batch are on file before the batch is checkpointed."""

    def initialize(self, initialize_input):
        self.shard = initialize_input.shard_id
        self.file = open(os.environ["COUNT_FILE"], "a")        # noqa: SIM115 (open as long as this process)

    def process_records(self, process_records_input):
        lines = [
            f"{self.shard}\t{record.sequence_number}\t{record.sub_sequence_number}\t{record.binary_data.decode()}\n"
            for record in process_records_input.records
        ]
        if not lines:
            return
        self.file.write("".join(lines))
        self.file.flush()
        last = process_records_input.records[-1]
        self.checkpoint(process_records_input.checkpointer, last.sequence_number, last.sub_sequence_number)

    def lease_lost(self, lease_lost_input):
        pass                                                   # another worker goes on from the last checkpoint

    def shard_ended(self, shard_ended_input):
        # Only this checkpoint lets the children begin.
        shard_ended_input.checkpointer.checkpoint()

    def shutdown_requested(self, shutdown_requested_input):
        self.checkpoint(shutdown_requested_input.checkpointer)

    def checkpoint(self, checkpointer, *position):
        try:
            checkpointer.checkpoint(*position)
        except CheckpointError as error:
            if error.value != "ShutdownException":             # the shard was lost meanwhile
                raise


if __name__ == "__main__":
    kcl.KCLProcess(CountRecords()).run()
