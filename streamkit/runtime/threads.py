"""Between threads and event loops: futures that a thread can wait for, a queue that hands things over, and stacks.

`Promise` is set on one side and waited for on the other, by a thread (`result`) or by a coroutine
(`asyncio.wrap_future`). `Handover` is unbounded: whoever offers waits for an answer before it offers again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import sys
import threading
import traceback
from typing import Any

Promise = concurrent.futures.Future
PromiseTimeout = concurrent.futures.TimeoutError
Handover = queue.SimpleQueue
HandoverEmpty = queue.Empty
Lock = threading.Lock                      # for what takes microseconds


def firm_promise() -> Promise[Any]:
    """A promise that whoever waits for it cannot cancel: it may always be kept or broken."""
    promise: Promise[Any] = Promise()
    promise.set_running_or_notify_cancel()
    return promise


def wait_for_promise(promise: Promise[None], timeout_s: float | None) -> bool:
    """In a thread: whether it was kept in time; does not look at its result."""
    return bool(concurrent.futures.wait([promise], timeout_s).done)


def thread_id() -> int:
    """Of the calling thread; never 0."""
    return threading.get_ident()


def stack_of_thread(thread: int) -> str:
    """Where that thread is now, innermost call last; "" when it has ended."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def stack_of_task(task: asyncio.Task[Any]) -> str:
    """Where a coroutine is now, innermost await last: through whatever coroutines it waits for."""
    entries = []
    inner: Any = task.get_coro()
    while (frame := getattr(inner, "cr_frame", None)) is not None:
        entries.append((frame, frame.f_lineno))
        inner = inner.cr_await
    return "".join(traceback.StackSummary.extract(iter(entries)).format())
