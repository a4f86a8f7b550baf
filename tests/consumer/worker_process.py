"""A worker in a process of its own, for tests that kill it: says on its output what happens to it.

    python -m tests.consumer.worker_process NAME ADDRESS [holding|silent]

holding: each batch waits for a line on the input before it is checkpointed. silent: nothing is checkpointed.
"""

from __future__ import annotations

import os
import sys
import time

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.processor import RecordProcessor, ShardContext
from streamkit.consumer.worker import Worker
from streamkit.errors import LeaseLost


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())      # one write: two threads do not mix their lines


class Telling(RecordProcessor):
    def initialize(self, ctx: ShardContext) -> None:
        self.shard = ctx.shard
        say("begin", ctx.shard, ctx.position, ctx.fencing_token)

    def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
        for record in batch:
            say("record", record.value)
        if mode == "silent":
            return
        if mode == "holding":
            say("holding", batch.end_sequence, checkpointer.fencing_token, running._member._keeper.session)
            sys.stdin.readline()
        time.sleep(0.002)                  # a handler that takes its time, in a thread
        try:
            checkpointer.checkpoint().result(20)
        except LeaseLost:
            say("refused", self.shard)
            raise

    def lease_lost(self) -> None:
        say("lost", self.shard)


if __name__ == "__main__":
    name, address, *modes = sys.argv[1:]
    mode = modes[0] if modes else ""
    running = Worker("s", application="app", start="trim_horizon", processor=Telling, worker=name, url=address,
                     membership_ms=2_000, batch_records_max=5)
    running.run()
