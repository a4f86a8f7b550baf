"""Between threads and event loops: futures that a thread can wait for, and a queue that hands things over.

`Promise` is set on one side and waited for on the other, by a thread (`result`) or by a coroutine
(`asyncio.wrap_future`). `Handover` is unbounded: whoever offers waits for an answer before it offers again.
"""

from __future__ import annotations

import concurrent.futures
import queue
from typing import Any

Promise = concurrent.futures.Future
PromiseTimeout = concurrent.futures.TimeoutError
Handover = queue.SimpleQueue
HandoverEmpty = queue.Empty


def firm_promise() -> Promise[Any]:
    """A promise that whoever waits for it cannot cancel: it may always be kept or broken."""
    promise: Promise[Any] = Promise()
    promise.set_running_or_notify_cancel()
    return promise


def wait_for_promise(promise: Promise[None], timeout_s: float | None) -> bool:
    """In a thread: whether it was kept in time; does not look at its result."""
    return bool(concurrent.futures.wait([promise], timeout_s).done)
