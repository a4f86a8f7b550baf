"""Record processors in other languages: a child process for each shard, spoken to as the MultiLangDaemon does.

A child that dies, answers the wrong status or none in time is killed, and its lease is given back: it begins anew at
its last checkpoint, with a new child, since what the old one kept in mind is gone with it. The other shards do not
notice. The waits between two lives of a shard's child double, up to half a minute, until a request goes well.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from streamkit._core.batch import Batch
from streamkit.compat import multilang
from streamkit.compat.checkpoints import KclCheckpoints
from streamkit.compat.processors import KclProcessor
from streamkit.consumer.failure import Surrendered
from streamkit.consumer.running import Running
from streamkit.consumer.stage import Stopping
from streamkit.errors import TimedOut
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Random
from streamkit.runtime.line_child import LineChild
from streamkit.runtime.real import RealRandom

log = logging.getLogger("streamkit.compat")

_WAIT_FIRST_MS = 200.0
_WAIT_MOST_MS = 30_000.0
_LOOK_S = 0.2                              # how often a wait looks whether the worker ends
_SHOWN_BYTES_MAX = 2_000


class ChildFailed(Surrendered):
    """A child process is of no more use; facts: shard, request, process_id."""

    code = "child_failed"


class Children:
    """Makes a child for each shard: `Worker(processor=children.processor)`.

    timeout_s: longest wait for an answer; None: no bound. grace_s: how long a child may take to end when its input has.
    `running`, once the worker is known, says whether it is still worth waiting for a new child.
    """

    def __init__(
        self, command: Sequence[str], *, timeout_s: float | None = None, grace_s: float = 10.0,
        random: Random | None = None,
    ) -> None:
        self.command = tuple(command)
        self.timeout_s = timeout_s
        self.grace_s = grace_s
        self.running: Running | None = None
        self._random = random or RealRandom()
        self._backoffs: dict[str, Backoff] = {}

    def processor(self) -> KclProcessor:
        return KclProcessor(ChildTarget(self))

    def backoff(self, shard: str) -> Backoff:
        """Of that shard's children, one after the other."""
        return self._backoffs.setdefault(shard, Backoff(self._random, _WAIT_FIRST_MS, _WAIT_MOST_MS))

    def rest(self, seconds: float) -> None:
        """In a thread: so long, or until the worker is asked to end."""
        never = Stopping()
        while seconds > 0 and not (self.running is not None and self.running.stopping):
            never.wait(min(seconds, _LOOK_S))
            seconds -= _LOOK_S


class ChildTarget:
    """One lease's child."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._child: LineChild | None = None
        self._shard = ""
        self._failing = False              # a child of this lease failed: wait before the next

    def initialize(self, shard: str, number: str, sub_number: int) -> None:
        self._shard = shard
        backoff = self._children.backoff(shard)
        if backoff.tries and not self._failing:
            self._children.rest(backoff.next_ms() / 1000)
        self._child = LineChild(self._children.command, wanted=self._is_answer, on_error_line=self._on_error_line)
        log.info("child.started shard=%s pid=%d", shard, self._child.process_id)
        self._ask(multilang.INITIALIZE, multilang.initialize(shard, number, sub_number), None)

    def process_records(self, batch: Batch[Any], millis_behind: int, checkpoints: KclCheckpoints) -> None:
        line = multilang.process_records(batch, millis_behind)
        self._ask(multilang.PROCESS_RECORDS, line, checkpoints)
        self._children.backoff(self._shard).reset()

    def shard_ended(self, checkpoints: KclCheckpoints) -> None:
        self._ask(multilang.SHARD_ENDED, multilang.request(multilang.SHARD_ENDED), checkpoints)

    def shutdown_requested(self, checkpoints: KclCheckpoints) -> None:
        self._ask(multilang.SHUTDOWN_REQUESTED, multilang.request(multilang.SHUTDOWN_REQUESTED), checkpoints)

    def lease_lost(self) -> None:
        if self._child is not None:
            self._ask(multilang.LEASE_LOST, multilang.request(multilang.LEASE_LOST), None)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            code = child.close(self._children.grace_s)
            log.info("child.ended shard=%s pid=%d code=%d", self._shard, child.process_id, code)

    # ---- one exchange --------------------------------------------------------------------------------------

    def _ask(self, action: str, line: bytes, checkpoints: KclCheckpoints | None) -> None:
        # checkpoints: None where none is allowed.
        child = self._child
        if child is None:
            raise self._failed(action, "its child has ended")
        written = child.write(line)
        while True:
            try:
                said = child.read(self._children.timeout_s) if written else b""
            except TimedOut as cause:
                raise self._failed(action, str(cause)) from cause
            if not said:
                raise self._failed(action, "it ended without an answer")
            answer = multilang.parse(said)
            if isinstance(answer, multilang.CheckpointAsked):
                refusal = (checkpoints or KclCheckpoints(self._shard)).write(
                    answer.sequenceNumber, answer.subSequenceNumber
                )
                if refusal is not None:
                    log.warning("child.checkpoint_refused shard=%s error=%s", self._shard, refusal)
                written = child.write(multilang.checkpointed(answer, refusal))
            elif answer is not None and answer.responseFor == action:
                return
            else:
                raise self._failed(action, f"it answered {said[:200].decode(errors='replace').strip()}")

    def _failed(self, action: str, why: str) -> ChildFailed:
        child, self._child = self._child, None
        process_id, ending = 0, ""
        if child is not None:
            process_id = child.process_id
            ending = f" (exit code {child.kill()})"
        backoff = self._children.backoff(self._shard)
        backoff.tries = max(1, backoff.tries)
        self._failing = action == multilang.INITIALIZE     # then our caller waits before it tries again
        log.error("child.failed shard=%s request=%s pid=%d error=%s%s", self._shard, action, process_id, why, ending)
        return ChildFailed(
            f"the child of {self._shard} failed at {action}: {why}{ending}",
            try_="what it wrote on stderr stands in the log above; the shard begins again at its last checkpoint",
            shard=self._shard, request=action, process_id=process_id,
        )

    def _is_answer(self, line: bytes) -> bool:
        if multilang.parse(line) is not None:
            return True
        if line.strip():
            log.info("child.printed shard=%s text=%s", self._shard, _shown(line))
        return False

    def _on_error_line(self, line: bytes) -> None:
        log.info("child.stderr shard=%s text=%s", self._shard, _shown(line))


def _shown(line: bytes) -> str:
    return line[:_SHOWN_BYTES_MAX].decode(errors="replace").rstrip()
