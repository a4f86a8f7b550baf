"""A worker in a process of its own: writes when it was given which record.

    python -m benchmarks.fleets.worker URL NAME FILE MEMBERSHIP_MS
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from streamkit import Consumer, Context
from streamkit import Record as StoredRecord

STREAM = "orders"
APPLICATION = "billing"


def main(url: str, name: str, path: str, membership_ms: str) -> None:
    output = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    consumer = Consumer(STREAM, application=APPLICATION, start="trim_horizon", codec="bytes", worker=name, url=url,
                        membership_ms=int(membership_ms), checkpoint_interval_ms=100)

    @consumer.handler
    def note(record: StoredRecord[Any], ctx: Context) -> None:
        os.write(output, f"{name} {ctx.shard} {record.sequence} {time.monotonic()}\n".encode())

    consumer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
