"""The class style: one processor object a shard, for those who want the whole life of a lease.

    Worker("orders", application="totals", start="latest", processor=Totals).run()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from streamkit.client.pool import Connector
from streamkit.consumer.aggregates import Deaggregate
from streamkit.consumer.checkpointer import HeldLease, Track
from streamkit.consumer.config import ConsumerConfig, OnExhausted, Start, stream_names
from streamkit.consumer.exactly_once import SinkDriver, SinkPosition, check_one_kind, check_sink
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context, Driver, ProcessorDriver
from streamkit.consumer.processor import Prepared, RecordProcessor, ShardContext
from streamkit.consumer.running import Running, worker_name
from streamkit.consumer.stage import Stages
from streamkit.consumer.transactional import TransactionDriver
from streamkit.errors import InvalidUse
from streamkit.model.codec import Codec, Decoding
from streamkit.model.sequence import sequence_number
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real import LoopThread


class Worker(Running):
    """A worker of `application` with `processor`: a class, or a function that makes an object for each shard.

    checkpoint: "manual" leaves it to the processor; "auto" also checkpoints each batch that `process` handled.
    handler_timeout_seconds, deaggregate, where, sink, instance, standby, weight, assignment: as for Consumer; with a
    sink `checkpointer.connection` is what to write with, and checkpoints follow by themselves. transactional: so too;
    `checkpointer.put` is what to put with.
    """

    def __init__(
        self,
        stream: str | Sequence[str],
        *,
        application: str,
        start: Start,
        processor: Callable[[], RecordProcessor],
        codec: Codec | str = "auto",
        annotation: Any = None,
        checkpoint: Literal["auto", "manual"] = "manual",
        checkpoint_interval_ms: int = 1_000,
        retry: RetryPolicy | None = None,
        dead_letter: str | None = None,
        on_exhausted: OnExhausted | None = None,
        batch_records_max: int = 10_000,
        prefetch_bytes_max: int = 64 * 1024 * 1024,
        deaggregate: Deaggregate = True,
        where: str | None = None,
        fan_out: bool = False,
        sink: SinkPosition | None = None,
        transactional: bool = False,
        processes: int = 1,
        leases_max: int | None = None,
        weight: float = 1.0,
        worker: str | None = None,
        instance: str | None = None,
        standby: bool = False,
        assignment: Literal["count", "load"] = "count",
        membership_ms: int = 10_000,
        stall_seconds: int = 300,
        handler_timeout_seconds: float = 0.0,
        drain_seconds: int = 30,
        url: str | Connector | None = None,
        runtime: Runtime | None = None,
        loop_thread: LoopThread | None = None,
    ) -> None:
        check_one_kind(sink, transactional=transactional)
        if transactional:
            checkpoint = "auto"
        if sink is not None:
            checkpoint = "auto"
            check_sink(sink, checkpoint=checkpoint)
        config = ConsumerConfig(
            streams=stream_names(stream), application=application, start=start, worker=worker_name(worker, instance),
            codec=codec, checkpoint=checkpoint, checkpoint_interval_ms=checkpoint_interval_ms,
            retry=retry or RetryPolicy(), dead_letter=dead_letter, on_exhausted=on_exhausted,
            batch_records_max=batch_records_max, prefetch_bytes_max=prefetch_bytes_max, leases_max=leases_max,
            processes=processes, deaggregate=deaggregate, where=where, fan_out=fan_out, transactional=transactional,
            membership_ms=membership_ms, stall_seconds=stall_seconds, drain_seconds=drain_seconds,
            weight=weight, instance=instance, standby=standby, assignment=assignment,
            handler_timeout_seconds=handler_timeout_seconds,
        )
        if not callable(processor):
            raise InvalidUse("processor must be a class, or a function that makes one", try_="pass processor=YourClass")
        super().__init__(config, url, runtime, loop_thread)
        self._processor = processor
        self._sink = sink
        self._decoding = Decoding(codec, annotation)

    def decoding(self) -> Decoding:
        return self._decoding

    def make_driver(self, lease: Track, context: Context, stages: Stages) -> Driver:
        grant = lease.grant
        shard = ShardContext(
            stream=lease.stream,
            shard=lease.shard.id,
            application=self.config.application,
            worker=self.config.worker,
            position=grant.checkpoint,
            fencing_token=lease.lease_epoch,
            previous_owner_crashed=grant.previous_owner_crashed,
            takeovers_without_progress=grant.takeovers_without_progress,
            sub_position=grant.sub_sequence,
            checkpoint_number=_checkpoint_number(lease),
            app_state=grant.app_state,
            prepared=Prepared(*grant.prepared) if grant.prepared is not None else None,
            shard_uuid=lease.shard.uuid,
        )
        driver = ProcessorDriver(
            self._processor(), context, shard, stages, timeout_s=self.config.handler_timeout_seconds
        )
        if self.config.transactional:
            assert isinstance(lease, HeldLease), "transactions have one lane"
            return TransactionDriver(driver, lease, context, stages, self.config.dead_letter)
        if self._sink is None:
            return driver
        assert isinstance(lease, HeldLease), "a sink has one lane"
        return SinkDriver(driver, self._sink, lease, context, stages)


def _checkpoint_number(lease: Track) -> str:
    # Inside an aggregate, the aggregate's own: its first user records are finished.
    shard, grant = lease.shard, lease.grant
    last = grant.checkpoint if grant.sub_sequence else grant.checkpoint - 1
    if last < 0:
        return ""
    return sequence_number(last, ordinal=shard.ordinal, created_ms=shard.created_ms, arrived_ms=shard.created_ms)
