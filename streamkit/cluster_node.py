"""A node's cluster half, plugged together for `node`: who it is, what the store says, its copies and its links.

Loaded by nodes of clusters alone. Read `open_cluster`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkit import __version__
from streamkit.broker.cluster import Cluster, ClusterConfig
from streamkit.broker.cluster_admin import ClusterAdmin, NodesCopies
from streamkit.broker.cluster_streams import ClusterStreams
from streamkit.broker.coordination import Coordination
from streamkit.broker.elections import ElectionConfig
from streamkit.broker.peer_feeds import FeedsConfig
from streamkit.broker.peer_link import BEAT_MS
from streamkit.broker.peers import PeersConfig
from streamkit.config import ClusterSection
from streamkit.errors import InvalidConfig
from streamkit.metadata.cluster_catalog import ClusterCatalog
from streamkit.metadata.cluster_reshardings import ClusterReshardings
from streamkit.metadata.controller import Controller
from streamkit.metadata.members import Identity, Members
from streamkit.metadata.notes import Notes
from streamkit.metadata.replica_sets import ReplicaSets
from streamkit.metadata.store import Store
from streamkit.metadata.stores import Certificates, open_url
from streamkit.protocol.peers import PEER_VERSION_MAX
from streamkit.runtime.interfaces import Runtime
from streamkit.storage import ClusterFacts, LogDirectory

if TYPE_CHECKING:
    from streamkit.node import Node


async def open_cluster(node: Node, directory: LogDirectory) -> Cluster:
    """Join, take up what lies here, listen, announce. Raises NodeRefused, StoreUnavailable and what a start raises."""
    config, runtime, push = node.config, node.runtime, node.stack.push_async_callback
    if not config.node.name:
        raise InvalidConfig(
            "a node of a cluster needs a name of its own", try_="streamkit serve --node-id a …",
            file="", line=0, key="node.name", value="",
        )
    store = node.options.store
    if store is None:
        store = await open_store(config.cluster, runtime)
        push(store.close)

    async def write_facts(cluster: str, name: str, starts: int, next_starts: int) -> None:
        await directory.write_cluster(ClusterFacts(cluster=cluster, node=name, starts=starts, next_starts=next_starts))

    members = await Members.open(store, runtime)
    push(members.leave)
    members.on_replaced.append(node.end)
    identity = Identity(
        node=node.name, disk=directory.disk_id, facts=directory.cluster, write_facts=write_facts,
        zone=config.cluster.zone, version=__version__,
        protocol_max=config.cluster.protocol_max or PEER_VERSION_MAX, boot=runtime.disk.boot_id(),
    )
    await members.join(identity)
    replica_sets = await ReplicaSets.open(store)
    push(replica_sets.close)
    catalog = await ClusterCatalog.open_cluster(
        store, runtime, node=node.name, replica_sets=replica_sets, members=members,
        replicas=config.cluster.replicas, accept_fewer=config.cluster.accept_fewer,
        shards_max=config.streams.shards_max,
    )
    push(catalog.close)
    streams = ClusterStreams(catalog, directory, node.counters, node.runtime.clock, auto_create=node.auto_create())
    streams.coordination = coordination = Coordination(streams, runtime.clock, node.coordinator_config())
    cluster = Cluster(
        identity=identity, members=members, streams=streams, runtime=runtime, config=cluster_config(config.cluster)
    )
    streams.copies = cluster.copies
    await streams.open()
    server = node.serve(streams, catalog, coordination, Notes(store, runtime.random))
    server.addresses = lambda: tuple(sorted(set(cluster.copies.addresses.values())))
    controller = Controller(
        store, runtime, node=node.name, members=members, replica_sets=replica_sets, catalog=catalog,
        replicas=config.cluster.replicas,
    )
    admin = ClusterAdmin(
        node=node.name, members=members, sets=replica_sets, streams=catalog,
        copies=NodesCopies(cluster.copies, lambda: runtime.disk.free_bytes(node.data_dir)),
        replicas=config.cluster.replicas, controller=lambda: controller.acting,
        store_trouble=lambda: members.store_trouble,
    )
    server.service.answer_cluster(admin.answers)
    push(coordination.close)
    await node.open_reshards(ClusterReshardings(store, catalog, runtime))
    streams.reshards = node.reshards
    catalog.on_change.append(node.reshards.stream_changed)
    push(cluster.close)
    node.addresses.peer = await cluster.open(f"{config.listen.host}:{config.listen.peer.port}")
    push(server.close)
    node.cluster_numbers = cluster.numbers
    if node.options.listen:
        await node.listen_to(server)
    native, peer = node.told(node.addresses.native), node.told(node.addresses.peer)
    await members.announce(address=native, peer_address=peer)
    await cluster.start()
    await controller.open()
    push(controller.close)
    node.reshards.finish_left()
    return cluster


async def open_store(section: ClusterSection, runtime: Runtime) -> Store:
    """The coordination store that cluster.url names. Raises InvalidConfig, StoreUnavailable."""
    etcd = section.etcd
    return await open_url(section.url, runtime, Certificates(
        ca_file=etcd.ca_file, certificate_file=etcd.certificate_file, key_file=etcd.key_file
    ))  # fmt: skip


def cluster_config(section: ClusterSection) -> ClusterConfig:
    return ClusterConfig(
        scrub_bytes_per_second=section.scrub_bytes_per_second,
        elections=ElectionConfig(suspect_ms=section.suspect_ms),
        peers=PeersConfig(
            beat_ms=min(BEAT_MS, section.suspect_ms // 3),     # who is idle says so before it is suspected
            feeds=FeedsConfig(catch_up_bytes_per_second=section.catch_up_bytes_per_second),
            version_max=section.protocol_max or PEER_VERSION_MAX,
        ),
    )
