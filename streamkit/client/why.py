"""Why an application is behind: facts in, findings out, the likeliest cause first.

Looked for in this order: no workers · a lease without owner · paused · one record tried again and again · throttled
reads · a handler slower than its input · prefetch that starves · a slow disk at the broker · clocks that differ.
Each finding has its evidence and one command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamkit.client.lag import Lag, StreamLag, lag_of
from streamkit.model.shard import shard_id
from streamkit.protocol.messages import ApplicationDescribed, LeaseState, ShardPace

_BUSY = 0.8                                # of the time inside user code: there is no more to be had
_STANDS_OUT = 0.5                          # one key, or one shard, has more than half of everything
_PREFETCH_FULL = 0.9
_STARVED = 0.5                             # of the time without a batch although there are records
_DISK_SLOW_MS = 100.0
_CLOCK_MS = 2_000


@dataclass(frozen=True, slots=True)
class Finding:
    """cause: a word for programs. text: one sentence; evidence: the figures behind it; try_: one command or setting."""

    cause: str
    text: str
    evidence: tuple[str, ...]
    try_: str


@dataclass(frozen=True, slots=True)
class Facts:
    """described: what the coordinator answers. put_ms: one put in a hundred takes at least that long on the node."""

    described: ApplicationDescribed
    put_ms: float = 0.0

    @property
    def lag(self) -> Lag:
        return lag_of(self.described)


def explain(facts: Facts) -> list[Finding]:
    """Every cause that the facts show, in the order above; empty when nothing is known to be wrong."""
    described = facts.described
    lag = facts.lag
    behind = [lease for lease in described.leases if lease.lag_records and lease.state != "complete"]
    findings: list[Finding] = []
    if not described.workers and any(lease.state != "complete" for lease in described.leases):
        since_s = min(lease.checkpoint_age_ms for lease in described.leases) / 1000
        findings.append(Finding(
            "no_workers", "no worker is running", (f"the last checkpoint was {since_s:.0f} s ago",),
            "start one: consumer.run(), or streamkit consume",
        ))
    else:
        findings += _unowned(described)
    findings += _paused(described)
    findings += _retrying(described)
    findings += _throttled(described)
    if behind:
        findings += _slow_handlers(described, lag)
        findings += _starved(described, behind)
        findings += _slow_disk(facts)
    findings += _clocks(described)
    return findings


def _unowned(described: ApplicationDescribed) -> Iterator[Finding]:
    free = [lease for lease in described.leases if lease.state == "ready" and not lease.owner]
    if free:
        yield Finding(
            "lease_without_owner", f"{_shards(free)} no worker: each has as many leases as it may take",
            (f"{len(described.workers)} workers, {len(described.leases)} leases",),
            "start another worker, or raise leases_max",
        )


def _paused(described: ApplicationDescribed) -> Iterator[Finding]:
    for lease in described.leases:
        if lease.state == "paused":
            yield Finding(
                "paused", f"{_name(lease)} is paused", (f"reason: {lease.reason or 'none was given'}",),
                f"streamkit app resume {described.application}",
            )


def _retrying(described: ApplicationDescribed) -> Iterator[Finding]:
    for lease in described.leases:
        if lease.poisoned:
            yield Finding(
                "retrying", f"{_name(lease)} tries one record again and again, at sequence {lease.checkpoint} or after",
                (f"{lease.poisoned} failing, {lease.lag_records} waiting behind",),
                f"read the worker's log for record.retrying, or name a dead_letter stream; worker {lease.owner}",
            )


def _throttled(described: ApplicationDescribed) -> Iterator[Finding]:
    total = sum(pace.throttled for _, pace in _paces(described))
    if total:
        evidence = (f"{total} fetches were refused",)
        yield Finding("throttled", "reads are throttled", evidence, "streamkit explain throttled")


def _slow_handlers(described: ApplicationDescribed, lag: Lag) -> Iterator[Finding]:
    leases = {(lease.stream, lease.ordinal): lease for lease in described.leases}
    for stream in lag.streams:
        slow = [
            (leases[stream.stream, pace.ordinal], pace) for _, pace in _paces(described)
            if pace.stream == stream.stream and pace.busy >= _BUSY
            and leases.get((stream.stream, pace.ordinal)) is not None
            and leases[stream.stream, pace.ordinal].lag_records
        ]  # fmt: skip
        if slow:
            yield _slow_handler(stream, max(slow, key=lambda each: each[0].lag_records), described)


def _slow_handler(stream: StreamLag, worst: tuple[LeaseState, ShardPace], described: ApplicationDescribed) -> Finding:
    lease, pace = worst
    evidence = [f"the handler is at work {pace.busy:.0%} of the time"]
    others = [each.record_ms for _, each in _paces(described) if each is not pace and each.record_ms]
    if pace.record_ms:
        beside = f" (other shards: {sum(others) / len(others):.3g} ms)" if others else ""
        evidence.append(f"it takes {pace.record_ms:.3g} ms a record{beside}")
    share = lease.lag_records / max(1, stream.records)
    if stream.leases > 1 and share > _STANDS_OUT:
        evidence.append(f"the shard holds {share:.0%} of the lag")
    command = f"more workers for {described.application}, or ordering=Ordering.by_key(8)"
    if pace.top_key and pace.top_key_share > _STANDS_OUT:
        evidence.append(f"{pace.top_key_share:.0%} of its records have the key {pace.top_key}")
        command = f"streamkit tail {lease.stream} --shard {shard_id(lease.ordinal)} --key {pace.top_key} -n 5"
    return Finding("slow_handler", f"the handler of {_name(lease)} is slower than its input", tuple(evidence), command)


def _starved(described: ApplicationDescribed, behind: Sequence[LeaseState]) -> Iterator[Finding]:
    late = {(lease.stream, lease.ordinal) for lease in behind}
    for worker in described.reports:
        used = worker.prefetch_bytes / max(1, worker.prefetch_bytes_max)
        waiting = [pace for pace in worker.shards if pace.waiting >= _STARVED and (pace.stream, pace.ordinal) in late]
        if used >= _PREFETCH_FULL and waiting:
            yield Finding(
                "prefetch_starved", f"{len(waiting)} shards of {worker.worker} wait for room to fetch into",
                (f"prefetch {used:.0%} full of {worker.prefetch_bytes_max >> 20} MiB",),
                f"prefetch_bytes_max={2 * worker.prefetch_bytes_max} in the Consumer",
            )


def _slow_disk(facts: Facts) -> Iterator[Finding]:
    if facts.put_ms >= _DISK_SLOW_MS:
        yield Finding(
            "slow_disk", "the broker's disk is slow",
            (f"one put in a hundred takes {facts.put_ms:.0f} ms or more",), "streamkit doctor, on the node",
        )


def _clocks(described: ApplicationDescribed) -> Iterator[Finding]:
    for worker in described.reports:
        if abs(worker.clock_ms) >= _CLOCK_MS:
            ahead = "ahead of" if worker.clock_ms > 0 else "behind"
            yield Finding(
                "clock", f"the clock of {worker.worker} is {ahead} the node's",
                (f"by {abs(worker.clock_ms) / 1000:.1f} s",), "timedatectl, on that machine",
            )


def _paces(described: ApplicationDescribed) -> Iterator[tuple[str, ShardPace]]:
    for worker in described.reports:
        for pace in worker.shards:
            yield worker.worker, pace


def _name(lease: LeaseState) -> str:
    return f"{lease.stream}/{shard_id(lease.ordinal)}"


def _shards(leases: Sequence[LeaseState]) -> str:
    return f"{_name(leases[0])} has" if len(leases) == 1 else f"{len(leases)} shards have"
