"""What a worker was asked to do, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from streamkit.consumer.aggregates import Deaggregate, check_deaggregate
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.ordering import Ordering
from streamkit.errors import InvalidUse
from streamkit.expressions.condition import Condition
from streamkit.model.codec import Codec, find_codec
from streamkit.model.limits import WEIGHT_MAX, WEIGHT_MIN
from streamkit.model.position import parse_position

OnExhausted = Literal["block", "dead_letter", "pause", "skip", "stop"]
Start = str | datetime | Mapping[str, str]
_POLICIES = ("block", "dead_letter", "pause", "skip", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerConfig:
    """How one worker of an application consumes.

    start: for shards that the application has no position of. on_exhausted: None means "dead_letter" when one is
    named, else "block". prefetch_bytes_max: fetched and not yet finished, over all shards of the worker.
    ordering: one record after the other, or lanes beside each other; see `Ordering`.
    deaggregate: whether user records inside the KPL's aggregates are handed out one by one, see `aggregates`.
    processes: how many workers `run` makes, each a process with bounds of its own and "-0", "-1" … after its name.
    instance: a worker of that name that comes back within membership_ms keeps its leases; one lives at a time.
    standby: holds nothing until another worker goes, then takes its place. weight: its share, beside those of others.
    assignment: by "count", or by "load" once all workers say so: the share of the time that user code takes.
    fan_out: brokers push batches as they are committed, instead of being asked for them.
    where: a condition; records that do not match are passed over and counted. unhandled: "skip" passes over records
    that no handler's condition holds for; None leaves them to on_exhausted. handler_timeout_seconds: see `in_time`.
    probes: after workers died over a shard, its records come one by one, and one that kills is known; False for who
    only gathers them, since none is to blame then.
    """

    streams: tuple[str, ...]
    application: str
    start: Start
    worker: str
    codec: Codec | str = "auto"
    ordering: Ordering = Ordering.SHARD
    checkpoint: Literal["auto", "manual"] = "auto"
    checkpoint_interval_ms: int = 1_000
    checkpoint_records: int = 10_000       # finished since the last one: write without waiting for the interval
    window_records: int = 10_000           # finished ahead of the stored checkpoint while none can be written
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    dead_letter: str | None = None
    on_exhausted: OnExhausted | None = None
    batch_records_max: int = 10_000
    prefetch_bytes_max: int = 64 * 1024 * 1024
    fetch_bytes_max: int = 4 * 1024 * 1024
    fetch_wait_ms: int = 500
    deaggregate: Deaggregate = True
    where: str | None = None
    unhandled: Literal["skip"] | None = None
    fan_out: bool = False
    transactional: bool = False            # the position is decided with what the handler puts
    leases_max: int | None = None
    weight: float = 1.0
    instance: str | None = None
    standby: bool = False
    assignment: Literal["count", "load"] = "count"
    processes: int = 1
    membership_ms: int = 10_000
    stall_seconds: int = 300               # 0: do not watch
    handler_timeout_seconds: float = 0.0   # 0: a handler that hangs is told of, no more
    drain_seconds: int = 30
    probes: bool = True

    def __post_init__(self) -> None:
        if not self.streams or not all(isinstance(name, str) and name for name in self.streams):
            raise _wrong("stream", self.streams, "the name of a stream, or several")
        if not isinstance(self.application, str) or not self.application:
            raise _wrong("application", self.application, "a name")
        if self.checkpoint not in ("auto", "manual"):
            raise _wrong("checkpoint", self.checkpoint, '"auto" or "manual"')
        if self.on_exhausted is not None and self.on_exhausted not in _POLICIES:
            raise _wrong("on_exhausted", self.on_exhausted, ", ".join(f'"{policy}"' for policy in _POLICIES))
        if self.on_exhausted == "dead_letter" and not self.dead_letter:
            raise _wrong("dead_letter", self.dead_letter, 'the name of a stream, because on_exhausted="dead_letter"')
        for name in ("checkpoint_interval_ms", "checkpoint_records", "window_records", "batch_records_max",
                     "prefetch_bytes_max", "fetch_bytes_max", "membership_ms", "drain_seconds", "processes"):
            if getattr(self, name) <= 0:
                raise _wrong(name, getattr(self, name), "a number above 0")
        if self.leases_max is not None and self.leases_max <= 0:
            raise _wrong("leases_max", self.leases_max, "a number above 0, or None for no bound")
        if not WEIGHT_MIN <= self.weight <= WEIGHT_MAX:
            raise _wrong("weight", self.weight, f"a number, {WEIGHT_MIN} to {WEIGHT_MAX}")
        if self.instance is not None and not (isinstance(self.instance, str) and 0 < len(self.instance) <= 100):
            raise _wrong("instance", self.instance, "a name of at most 100 characters, or None")
        if self.handler_timeout_seconds < 0:
            raise _wrong("handler_timeout_seconds", self.handler_timeout_seconds, "seconds, or 0 for no bound")
        if self.assignment not in ("count", "load"):
            raise _wrong("assignment", self.assignment, '"count" or "load"')
        check_deaggregate(self.deaggregate)
        if not isinstance(self.ordering, Ordering):
            raise _wrong("ordering", self.ordering, "Ordering.SHARD, Ordering.by_key(8) or Ordering.none(8)")
        if self.ordering.within != "shard" and self.checkpoint == "manual":
            raise _wrong("checkpoint", self.checkpoint, '"auto" with lanes, which have no position of their own')
        if self.transactional and self.checkpoint == "manual":
            raise _wrong("checkpoint", self.checkpoint, '"auto": the position belongs to the transaction')
        if self.transactional and self.ordering.within != "shard":
            raise _wrong("ordering", self.ordering, "Ordering.SHARD: a transaction has one position a shard")
        find_codec(self.codec)
        self.condition()
        if self.unhandled not in (None, "skip"):
            raise _wrong("unhandled", self.unhandled, '"skip", or None for what on_exhausted says')
        if not isinstance(self.start, Mapping):
            parse_position(self.start)

    def condition(self) -> Condition | None:
        """`where`, parsed; with counts of its own each time. Raises InvalidQuery."""
        return None if self.where is None else Condition(self.where, self.codec)

    @property
    def policy(self) -> OnExhausted:
        return self.on_exhausted or ("dead_letter" if self.dead_letter else "block")


def stream_names(stream: str | Sequence[str]) -> tuple[str, ...]:
    return (stream,) if isinstance(stream, str) else tuple(stream)


def _wrong(name: str, value: object, wanted: str) -> InvalidUse:
    return InvalidUse(f"{name} must be {wanted}; got {value!r}", try_=f"pass {name}=…", argument=name)
