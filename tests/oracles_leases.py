"""Slow, obvious twins of the lease rules: dictionaries instead of rows, a scan instead of a heap."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Lease:
    state: str = "ready"
    owner: int = 0
    lease_epoch: int = 0
    checkpoint: int = 0
    answers: dict[int, str] = field(default_factory=dict)     # of the present lease epoch


class LeaseTable:
    """What `_core.lease_table` promises, one dictionary entry a lease."""

    def __init__(self) -> None:
        self.leases: dict[bytes, Lease] = {}

    def add(self, shard: bytes, checkpoint: int, waiting: bool = False) -> None:
        self.leases[shard] = Lease(state="waiting" if waiting else "ready", checkpoint=checkpoint)

    def grant(self, shard: bytes, session: int) -> None:
        lease = self.leases[shard]
        lease.state, lease.owner, lease.lease_epoch, lease.answers = "owned", session, lease.lease_epoch + 1, {}

    def free(self, shard: bytes) -> None:
        lease = self.leases[shard]
        lease.owner = 0
        if lease.state not in ("paused", "complete"):
            lease.state = "ready"

    def checkpoint(self, shard: bytes, lease_epoch: int, number: int, sequence: int) -> str:
        lease = self.leases.get(shard)
        if lease is None or not lease.owner or lease.lease_epoch != lease_epoch:
            return "fenced"
        if number == max(lease.answers, default=0) and number:
            return lease.answers[number]
        if number < max(lease.answers, default=1):
            return "behind"
        lease.answers[number] = "behind" if sequence < lease.checkpoint else "ok"
        lease.checkpoint = max(lease.checkpoint, sequence)
        return lease.answers[number]


def fair(loads: list[int]) -> bool:
    """Ceil and floor shares."""
    return not loads or max(loads) - min(loads) <= 1
