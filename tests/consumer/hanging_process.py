"""A worker whose plain function hangs at the value 3: python -m tests.consumer.hanging_process ADDRESS FORM.

FORM: record, batch, or lanes. It runs in processes that are begun anew when they are killed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from streamkit._core.batch import Batch
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.consumer.ordering import Ordering

NEVER = threading.Event()


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    address, form = sys.argv[1:]
    logging.basicConfig(level=logging.CRITICAL)
    consumer = Consumer(
        "s", application="app", start="trim_horizon", worker="w", processes=2, url=address, membership_ms=2_000,
        checkpoint_interval_ms=100, handler_timeout_seconds=0.4, retry=RetryPolicy(attempts_max=2), dead_letter="dead",
        ordering=Ordering.by_key(3) if form == "lanes" else Ordering.SHARD,
    )

    def one(value: int) -> None:
        say("begun", value, os.getpid())
        if value == 3:
            NEVER.wait()
        say("ended", value, os.getpid())

    if form == "batch":
        @consumer.handler
        def handle_all(batch: Batch[int], ctx: Context) -> None:
            for record in batch:
                one(record.value)
    else:
        @consumer.handler
        def handle(value: int, ctx: Context) -> None:
            one(value)

    consumer.run()
