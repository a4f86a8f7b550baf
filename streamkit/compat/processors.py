"""Processors with the KCL's five callbacks, run by a Worker.

    Worker("orders", application="billing", start="trim_horizon", processor=kclpy_processor(MyProcessor)).run()

`KclProcessor` calls a `Target` in the KCL's order: initialize, process_records …, then shard_ended, or
shutdown_requested and lease_lost. A target is a Python object (`KclpyTarget`) or a child process (`child.py`).

What differs from the KCL, unless strict_kcl: a `process_records` that raises is called again with the same records and
nothing is passed over; in both, a `shard_ended` that does not checkpoint is called again, five times, and then what
on_exhausted says happens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol

from streamkit._core.batch import Batch
from streamkit.compat.checkpoints import KclCheckpoints, KclpyCheckpointer
from streamkit.compat.kclpy import messages
from streamkit.compat.kclpy.v2.processor import V1toV2Processor
from streamkit.compat.kclpy.v3.processor import V2toV3Processor
from streamkit.compat.sequence_numbers import TRIM_HORIZON
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.processor import RecordProcessor, ShardContext
from streamkit.errors import InvalidUse, StreamkitError
from streamkit.runtime.interfaces import Clock
from streamkit.runtime.real import RealClock

log = logging.getLogger("streamkit.compat")


class EndNotCheckpointed(StreamkitError):
    """The processor returned from shard_ended and has not checkpointed the end; facts: shard."""

    code = "end_not_checkpointed"


class Target(Protocol):
    """One shard's processor; called from one thread at a time, and never after lease_lost or close."""

    def initialize(self, shard: str, number: str, sub_number: int) -> None: ...
    def process_records(self, batch: Batch[Any], millis_behind: int, checkpoints: KclCheckpoints) -> None: ...
    def shard_ended(self, checkpoints: KclCheckpoints) -> None: ...
    def shutdown_requested(self, checkpoints: KclCheckpoints) -> None: ...
    def lease_lost(self) -> None: ...
    def close(self) -> None:
        """Nothing follows."""


class KclProcessor(RecordProcessor):
    """A streamkit processor around a target."""

    def __init__(self, target: Target, clock: Clock | None = None) -> None:
        self._target = target
        self._clock = clock or RealClock()
        self._checkpoints: KclCheckpoints
        self._shard = ""
        self._ended = False

    def initialize(self, ctx: ShardContext) -> None:
        self._shard = ctx.shard
        self._checkpoints = KclCheckpoints(ctx.shard)
        self._target.initialize(ctx.shard, ctx.checkpoint_number or TRIM_HORIZON, max(0, ctx.sub_position - 1))

    def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
        last_ms = int(batch[len(batch) - 1].arrived.timestamp() * 1000)
        self._checkpoints.begin(checkpointer, batch)
        try:
            self._target.process_records(batch, max(0, self._clock.now_ms() - last_ms), self._checkpoints)
        finally:
            self._checkpoints.end()

    def shard_ended(self, checkpointer: Checkpointer) -> None:
        self._checkpoints.begin(checkpointer)
        try:
            self._target.shard_ended(self._checkpoints)
        finally:
            self._checkpoints.end()
        if not checkpointer.complete:
            raise EndNotCheckpointed(
                f"the processor of {self._shard} did not checkpoint in shard_ended, so its children cannot begin",
                try_="call checkpointer.checkpoint() there, and in shutdown when the reason is TERMINATE",
                shard=self._shard,
            )
        self._ended = True

    def shutdown_requested(self, checkpointer: Checkpointer) -> None:
        self._checkpoints.begin(checkpointer)
        try:
            self._target.shutdown_requested(self._checkpoints)
        finally:
            self._checkpoints.end()

    def lease_lost(self) -> None:
        try:
            if not self._ended:
                self._target.lease_lost()
        finally:
            self._target.close()


class KclpyTarget:
    """A record processor written in Python for amazon_kclpy, of any generation."""

    def __init__(self, processor: Any, *, strict_kcl: bool) -> None:
        version = generation_of(processor)
        if version == 1:
            processor = V1toV2Processor(processor)
        self._processor = processor if version == 3 else V2toV3Processor(processor)
        self._strict = strict_kcl

    def _call(self, message: Any, checkpoints: KclCheckpoints | None) -> None:
        checkpointer = KclpyCheckpointer(checkpoints) if checkpoints is not None else None
        try:
            message.dispatch(checkpointer, self._processor)
        except Exception:
            if not self._strict:
                raise
            log.exception("kclpy.passed_over action=%s", message.action)

    def initialize(self, shard: str, number: str, sub_number: int) -> None:
        told = {"shardId": shard, "sequenceNumber": number, "subSequenceNumber": sub_number}
        self._call(messages.InitializeInput(told), None)

    def process_records(self, batch: Batch[Any], millis_behind: int, checkpoints: KclCheckpoints) -> None:
        records = [messages.StreamRecord(record) for record in batch]
        told = {"records": records, "millisBehindLatest": millis_behind}
        self._call(messages.ProcessRecordsInput(told), checkpoints)

    def shard_ended(self, checkpoints: KclCheckpoints) -> None:
        self._call(messages.ShardEndedInput({}), checkpoints)

    def shutdown_requested(self, checkpoints: KclCheckpoints) -> None:
        self._call(messages.ShutdownRequestedInput({}), checkpoints)

    def lease_lost(self) -> None:
        self._call(messages.LeaseLostInput({}), None)

    def close(self) -> None:
        """An object needs no end."""


def generation_of(processor: Any) -> int:
    """1, 2 or 3: by its `version`, else by its methods. Raises InvalidUse."""
    version = getattr(processor, "version", None)
    if version in (1, 2, 3):
        return int(version)
    if callable(getattr(processor, "shard_ended", None)):
        return 3
    process = getattr(processor, "process_records", None)
    if not callable(process):
        raise InvalidUse(
            f"{type(processor).__name__} is no record processor: it has no process_records",
            try_="pass the class that amazon_kclpy would run", processor=type(processor).__name__,
        )
    return 1 if len(inspect.signature(process).parameters) == 2 else 2


def kclpy_processor(
    make: Callable[[], Any], *, strict_kcl: bool = False, clock: Clock | None = None
) -> Callable[[], KclProcessor]:
    """For `Worker(processor=…)`: a processor of amazon_kclpy's first, second or third generation for each shard.

    make: the class, or a function that makes one. strict_kcl: what it raises is logged and passed over, as the KCL
    does; otherwise records are handed over again until they are processed. The Worker must leave checkpoints to it:
    checkpoint="manual", its default.
    """
    return lambda: KclProcessor(KclpyTarget(make(), strict_kcl=strict_kcl), clock)
