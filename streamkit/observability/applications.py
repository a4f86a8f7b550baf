"""The metrics of applications: how far each is behind on every shard, with or without a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(frozen=True, slots=True)
class LeaseNumbers:
    """An application on one shard. trim_ms: None when nothing is unfinished."""

    application: str
    stream: str
    shard: str
    state: str
    owned: bool
    lease_epoch: int
    lag_records: int
    lag_bytes: int
    lag_ms: int
    trim_ms: int | None
    checkpoint_age_ms: int
    takeovers: int
    retrying: int
    lost: int


@dataclass(frozen=True, slots=True)
class ApplicationNumbers:
    """What the coordinator knows; only its node has these. checkpoints: result → count, over all applications."""

    leases: Sequence[LeaseNumbers]
    members: dict[str, int]
    checkpoints: dict[str, int]


# Name, text, what a lease has of it, and how leases of one stream are put together where shards are left out.
_LEASE_GAUGES: tuple[tuple[str, str, Callable[[LeaseNumbers], float | None], Callable[[list[float]], float]], ...] = (
    ("lag_records", "Records not finished.", lambda lease: lease.lag_records, sum),
    ("lag_bytes", "Stored bytes not finished.", lambda lease: lease.lag_bytes, sum),
    ("lag_seconds", "Age of the first unfinished record.", lambda lease: lease.lag_ms / 1000, max),
    ("time_to_trim_seconds", "Until retention removes an unfinished record.",
     lambda lease: None if lease.trim_ms is None else lease.trim_ms / 1000, min),
    ("checkpoint_age_seconds", "Since the last checkpoint.", lambda lease: lease.checkpoint_age_ms / 1000, max),
    ("lease_epoch", "Grows with every change of owner.", lambda lease: lease.lease_epoch, max),
    ("takeovers_without_progress", "Owners in a row that died before a checkpoint.", lambda lease: lease.takeovers,
     max),
    ("records_retrying", "Records that failed and are tried again.", lambda lease: lease.retrying, sum),
)  # fmt: skip


def application_metrics(now: ApplicationNumbers, *, apart: bool) -> Iterable[Metric]:
    """apart: with a label for each shard; else leases of one stream are put together."""
    labels = ["application", "stream", "shard"] if apart else ["application", "stream"]

    def series(lease: LeaseNumbers) -> tuple[str, ...]:
        return (lease.application, lease.stream, lease.shard) if apart else (lease.application, lease.stream)

    for name, text, value, together in _LEASE_GAUGES:
        found: dict[tuple[str, ...], list[float]] = {}
        for lease in now.leases:
            if (number := value(lease)) is not None:
                found.setdefault(series(lease), []).append(number)
        family = GaugeMetricFamily(f"streamkit_application_{name}", text, labels=labels)
        for key, numbers in found.items():
            family.add_metric(list(key), together(numbers))
        yield family
    lost = CounterMetricFamily(
        "streamkit_application_records_lost_to_retention_total", "Removed before they were finished.", labels=labels
    )
    states = GaugeMetricFamily(
        "streamkit_application_leases", "Leases by state.", labels=["application", "stream", "state"]
    )
    unowned = GaugeMetricFamily("streamkit_application_unowned_leases", "Leases to be had that nobody has.",
                                labels=["application", "stream"])  # fmt: skip
    lost_sums: dict[tuple[str, ...], int] = {}
    state_sums: dict[tuple[str, ...], int] = {}
    unowned_sums: dict[tuple[str, ...], int] = {}
    for lease in now.leases:
        lost_sums[series(lease)] = lost_sums.get(series(lease), 0) + lease.lost
        key = (lease.application, lease.stream)
        state_sums[*key, lease.state] = state_sums.get((*key, lease.state), 0) + 1
        unowned_sums[key] = unowned_sums.get(key, 0) + (not lease.owned and lease.state == "ready")
    for each, sums in ((lost, lost_sums), (states, state_sums), (unowned, unowned_sums)):
        for key, total in sums.items():
            each.add_metric(list(key), total)
        yield each
    members = GaugeMetricFamily("streamkit_application_workers", "Workers that are members.", labels=["application"])
    for name, total in now.members.items():
        members.add_metric([name], total)
    yield members
    results = CounterMetricFamily("streamkit_checkpoints_total", "Checkpoints by result.", labels=["result"])
    for result, total in now.checkpoints.items():
        results.add_metric([result], total)
    yield results
