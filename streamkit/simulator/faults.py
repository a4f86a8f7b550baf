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

# What needs a cluster; `cluster_nemesis.py` says what each is.
POWER_ACTS = ("power_loss", "power_loss_two", "power_loss_all", "crash_at_write", "sync_fails")
DAMAGE_ACTS = ("wipe_node", "restore_node", "rot", "lying_disk", "misdirected_write", "stale_read")
LINK_ACTS = ("partition", "isolate", "one_way", "ring", "slow_network")
STORE_ACTS = (
    "cut_store", "store_down", "store_loses_answers", "store_slow", "store_stale", "expire_sessions", "compact_store"
)
ADMIN_ACTS = ("move_leader", "move_copy", "drain_node", "split", "merge")
CLUSTER_ACTS = (
    *ACTS, "power_loss_two", "power_loss_all", "slow_node", "upgrade",
    *DAMAGE_ACTS, *LINK_ACTS, *STORE_ACTS, *ADMIN_ACTS,
)  # fmt: skip
AIMED_DAMAGE_ACTS = ("relay_wipe", "relay_rot")        # the rest of what `aimed.py` does harms no disk

# What clients do beside the plain things; `producing.py` and `handling.py` say what each is.
FEATURES = ("named", "halt", "keyless", "resolve", "where", "fan_out", "poison", "operate", "state")
_NOT_BESIDE_STATE = ("where", "poison", "operate")     # what changes which records a state is made of

BESIDE_LIES = (*CLIENT_ACTS, "lying_disk", "clock_jump", "compact_store", "split", "merge")


@dataclass(slots=True, kw_only=True)
class Faults:
    """acts: what the nemesis may do, with weights. Counts are for the whole run; seconds are virtual.

    durability: of the stream; "os" only where no power is lost, since it promises nothing there.
    rot: bits are flipped in stored files while the node is down; then the promise is only that nobody reads them.
    nodes: one alone, or a cluster. zones: its nodes have different ones. versions: some speak an older protocol
    at first. features: of FEATURES, what its clients do beside the plain things.
    relaying: a second application copies the stream, in transactions. delivering: another delivers it into a store.
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
    nodes: int = 1
    zones: bool = False
    suspect_ms: int = 1_500
    versions: bool = False
    features: tuple[str, ...] = ()
    relaying: bool = False
    delivering: bool = False

    @property
    def damages(self) -> bool:
        """Whether one node of a cluster may lose or change what lies on its disk."""
        return self.nodes > 1 and any(act in self.acts for act in DAMAGE_ACTS + AIMED_DAMAGE_ACTS)

    @property
    def may_stall(self) -> bool:
        """Whether so many copies may come to doubt themselves that a shard waits for an operator.

        A loss of power may tear the last group of a journal, and then nobody can say whether it had been synced: such
        a copy does not vote. With one disk gone as well, a majority may be out of reach.
        """
        torn = any(act in self.acts for act in POWER_ACTS)
        return self.nodes > 1 and (self.durability == "os" or (torn and self.damages))

    @classmethod
    def none(cls) -> Faults:
        """A friendly world."""
        return cls()


def draw_features(draw: random.Random) -> tuple[str, ...]:
    """Of half of the runs none, of the others up to three. Drawn last: a run without any is what it was before."""
    drawn = draw.sample(FEATURES, draw.choice((0, 0, 0, 1, 2, 3)))
    return tuple(name for name in drawn if "state" not in drawn or name not in _NOT_BESIDE_STATE)


def draw_faults(draw: random.Random, *, cluster: bool = False) -> Faults:
    """A world for one seed. cluster: it is to become a cluster's."""
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
    faults = Faults(
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
    if not cluster:
        faults.features = draw_features(draw)
    return faults


def draw_relaying(faults: Faults, seed: int) -> None:
    """In a fifth of the seeds; the others see what they saw before there were transactions."""
    loses = faults.rot or faults.durability != "fsync"     # what is read may be gone afterwards, having been copied
    faults.relaying = not loses and random.Random(f"has relaying {seed}").random() < 0.25


def draw_delivering(faults: Faults, seed: int) -> None:
    """As relaying, and for the same reason where that is left out."""
    loses = faults.rot or faults.durability != "fsync"
    faults.delivering = not loses and random.Random(f"has delivering {seed}").random() < 0.25


def draw_cluster_faults(draw: random.Random) -> Faults:
    """A cluster's world for one seed: of a third of all that can go wrong, much or little."""
    faults = draw_faults(draw, cluster=True)
    share = draw.choice((0.1, 0.25, 0.5))
    faults.acts = {act: draw.choice((1.0, 1.0, 3.0)) for act in CLUSTER_ACTS if draw.random() < share}
    if "lying_disk" in faults.acts:
        # What is acknowledged by a disk that lies and an honest one is on one disk alone: the others must be well.
        faults.acts = {act: weight for act, weight in faults.acts.items() if act in BESIDE_LIES}
        faults.acts["victim_loses_power"] = 2.0
    faults.act_count = draw.choice((1, 2, 4, 8, 12)) if faults.acts else 0
    faults.rot = False
    faults.nodes = draw.choice((3, 3, 3, 4, 5))
    faults.zones = draw.random() < 0.3
    faults.suspect_ms = draw.choice((300, 1_500))
    faults.versions = "upgrade" in faults.acts
    faults.durability = draw.choice(("fsync", "fsync", "os"))
    faults.records = draw.choice((40, 100, 200))
    faults.features = draw_features(draw)
    return faults
