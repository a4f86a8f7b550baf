"""How hostile the world of one seed is. Each seed draws its own: some faults are on, most are off, as in a swarm."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from streamkit.simulator.disk import DiskFaults
from streamkit.simulator.network import NetworkFaults

# What the nemesis can do; `run.py` says what each is, `draw_faults` how often it is on.
NODE_ACTS = ("kill_node", "power_loss", "crash_at_write", "stop_node", "orderly_restart")
NETWORK_ACTS = ("break_connections", "stall_link")
CLIENT_ACTS = ("kill_worker", "stop_worker", "kill_producer", "stop_producer")
WORLD_ACTS = ("clock_jump", "disk_full", "sync_fails", "slow_disk")
ACTS = NODE_ACTS + NETWORK_ACTS + CLIENT_ACTS + WORLD_ACTS


@dataclass(slots=True, kw_only=True)
class Faults:
    """acts: what the nemesis may do, with weights. Counts are for the whole run; seconds are virtual.

    durability: of the stream; "os" only where no power is lost, since it promises nothing there.
    rot: bits are flipped in stored files while the node is down; then the promise is only that nobody reads them.
    """

    acts: dict[str, float] = field(default_factory=dict)
    act_count: int = 0
    busy_seconds: float = 4.0
    disk: DiskFaults = field(default_factory=DiskFaults)
    network: NetworkFaults = field(default_factory=NetworkFaults)
    durability: str = "fsync"
    rot: bool = False
    shards: int = 2
    producers: int = 2
    workers: int = 2
    records: int = 240
    keys: int = 8
    small_journal: bool = True

    @classmethod
    def none(cls) -> Faults:
        """A friendly world."""
        return cls()


def draw_faults(draw: random.Random) -> Faults:
    """A world for one seed."""
    acts = {act: draw.choice((1.0, 1.0, 3.0)) for act in ACTS if draw.random() < 0.4}
    if draw.random() < 0.05:
        acts = {}
    loses_power = bool({"power_loss", "crash_at_write", "sync_fails"} & acts.keys())
    network = NetworkFaults(
        delay_seconds=draw.choice((0.0001, 0.0003, 0.002)),
        slow=draw.choice((0.0, 0.0, 0.02, 0.1)),
        slow_seconds=draw.choice((0.02, 0.2)),
        cut_up=draw.choice((0.0, 0.0, 0.1, 0.5)),
        broken=draw.choice((0.0, 0.0, 0.0, 0.003)),
        refused=draw.choice((0.0, 0.0, 0.1)),
        window_bytes=draw.choice((4096, 64 * 1024, 256 * 1024)),
    )
    disk = DiskFaults(
        write_seconds=draw.choice((0.00001, 0.0002)),
        sync_seconds=draw.choice((0.0002, 0.001, 0.01)),
        slow=draw.choice((0.0, 0.0, 0.05)),
        slow_seconds=draw.choice((0.05, 0.5)),
        cold=draw.choice((0.0, 0.0, 0.3, 1.0)),
    )
    return Faults(
        acts=acts,
        act_count=draw.choice((1, 2, 4, 8)) if acts else 0,
        busy_seconds=draw.choice((2.0, 4.0)),
        disk=disk,
        network=network,
        durability="fsync" if loses_power or draw.random() < 0.7 else "os",
        rot=bool(acts) and draw.random() < 0.04,
        shards=draw.choice((1, 2, 2, 3)),
        producers=draw.choice((1, 2, 2, 3)),
        workers=draw.choice((1, 2, 2, 3)),
        records=draw.choice((60, 150, 300)),
        keys=draw.choice((1, 4, 12)),
        small_journal=draw.random() < 0.8,
    )
