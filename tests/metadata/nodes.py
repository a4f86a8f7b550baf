"""Nodes on one memory store, each with a handle of its own, without anything but metadata."""

from dataclasses import dataclass

from streamkit.metadata.cluster_catalog import ClusterCatalog
from streamkit.metadata.members import Identity, Members
from streamkit.metadata.replica_sets import ReplicaSets


@dataclass
class Facts:
    cluster: str
    node: str
    starts: int
    next_starts: int


class Directory:
    """A data directory, as far as joining knows it. `copy()` is a backup."""

    def __init__(self, disk: bytes, facts: Facts | None = None) -> None:
        self.disk = disk
        self.facts = facts

    async def write(self, cluster, node, starts, next_starts):
        self.facts = Facts(cluster, node, starts, next_starts)

    def copy(self):
        return Directory(self.disk, Facts(**vars(self.facts)) if self.facts else None)

    def identity(self, node, zone="", boot="boot"):
        return Identity(
            node=node, disk=self.disk, facts=self.facts, write_facts=self.write, zone=zone, version="0.2", boot=boot
        )


def directory(name: str) -> Directory:
    return Directory(name.encode().ljust(16, b"-"))


class MetadataNode:
    """What a node has of metadata: members, replica sets, catalog."""

    @classmethod
    async def start(cls, store, runtime, name, *, zone="", replicas=3, accept_fewer=False, disk=None, ttl_ms=5_000):
        self = cls()
        self.name, self.store, self.runtime = name, store, runtime
        self.directory = disk or directory(name)
        self.members = await Members.open(store, runtime, ttl_ms=ttl_ms)
        await self.members.join(
            self.directory.identity(name, zone), address=f"{name}:1", peer_address=f"{name}:2"
        )
        self.sets = await ReplicaSets.open(store)
        self.catalog = await ClusterCatalog.open_cluster(
            store, runtime, node=name, replica_sets=self.sets, members=self.members, replicas=replicas,
            accept_fewer=accept_fewer,
        )
        return self

    async def stop(self):
        await self.catalog.close()
        await self.sets.close()
        await self.members.leave()
