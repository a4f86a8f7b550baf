"""A worker of several processes, for tests that kill them: python -m tests.consumer.processes_process ADDRESS COUNT."""

from __future__ import annotations

import os
import sys
import time

from streamkit.consumer.consumer import Consumer
from streamkit.consumer.handler import Context


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    address, count = sys.argv[1:]
    consumer = Consumer("s", application="app", start="trim_horizon", worker="many", processes=int(count), url=address,
                        membership_ms=2_000, checkpoint_interval_ms=100)

    @consumer.handler
    def handle(value: int, ctx: Context) -> None:
        say("record", value, ctx.worker, os.getpid())
        time.sleep(0.001)

    say("parent", os.getpid())
    consumer.run()
    say("over")
