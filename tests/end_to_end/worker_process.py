"""A worker in a process of its own, to be killed and stopped.

    python -m tests.end_to_end.worker_process URL NAME FILE [STREAM]

Each batch is written to FILE at once, a line for itself and one a record: `name shard sequence`; so is what happens
to a lease.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from streamkit.consumer.processor import RecordProcessor, ShardContext
from streamkit.consumer.worker import Worker

STREAM = "kill-worker"
APPLICATION = "readers"
MEMBERSHIP_MS = 2_000


def main(url: str, name: str, path: str, stream: str = STREAM) -> None:
    output = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    class Notes(RecordProcessor):
        def initialize(self, ctx: ShardContext) -> None:
            self.shard = ctx.shard
            os.write(output, f"{name} {self.shard} begins {ctx.position} {ctx.fencing_token}\n".encode())

        def process(self, batch: Any, checkpointer: Any) -> None:
            lines = [f"{name} {self.shard} batch {len(batch)}\n"]
            lines += [f"{name} {self.shard} {record.sequence}\n" for record in batch]
            os.write(output, "".join(lines).encode())

        def lease_lost(self) -> None:
            os.write(output, f"{name} {self.shard} lost\n".encode())

    Worker(
        stream, application=APPLICATION, start="trim_horizon", processor=Notes, worker=name, url=url,
        membership_ms=MEMBERSHIP_MS, checkpoint="auto", checkpoint_interval_ms=100, codec="bytes",
    ).run()  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
