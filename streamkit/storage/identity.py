"""Who a data directory belongs to, and whether it was left in order.

    node.id   "SKN1", crc u32 of the rest, node uuid 16 B, disk uuid 16 B; written once
    super     two slots, see `super_slots`: the boot it was last opened under, and the clean mark
    cluster   two slots; body: JSON of ClusterFacts. Not there as long as the directory belongs to no cluster

Used by `log_directory` while it opens and closes; on another thread than the loop.
"""

from __future__ import annotations

import msgspec

from streamkit._core.files import crc32c
from streamkit.errors import CorruptFile
from streamkit.runtime.interfaces import Disk, Random
from streamkit.storage.super_slots import SLOT_BYTES, NodeFacts, read_slots, write_slot


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the directory belongs. starts: how often the node joined, as the store counts; next_starts: written before
    the store is told of one more, so that a directory that fell behind is a copy of another time."""

    cluster: str
    node: str
    starts: int = 0
    next_starts: int = 0


def read_cluster(disk: Disk, path: str) -> tuple[int, ClusterFacts | None]:
    """(generation, facts); None when there are none yet. Raises CorruptFile when there were."""
    name = f"{path}/cluster"
    if not disk.exists(name):
        return 0, None
    file = disk.open(name)
    try:
        data = file.read(2 * SLOT_BYTES, 0)
    finally:
        file.close()
    slot = read_slots(data)
    if slot is not None:
        try:
            return slot[0], msgspec.json.decode(slot[1], type=ClusterFacts)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            slot = None
    if not any(data[:512]):
        return 0, None                                         # the first one was being written
    raise CorruptFile(
        f"{name} does not say which cluster the directory belongs to", try_="restore it from a copy of the directory, "
        "or let the node join with an empty one", path=name, position=0, reason="cluster",
    )  # fmt: skip


def write_cluster(disk: Disk, path: str, generation: int, facts: ClusterFacts) -> None:
    """Durable when it returns. Raises OSError."""
    file = disk.open(f"{path}/cluster", create=True)
    try:
        write_slot(file, generation, msgspec.json.encode(facts))
        file.sync()
    finally:
        file.close()
    disk.sync_directory(path)


def make_root(disk: Disk, path: str) -> None:
    """The directory itself. It outlives a loss of power once the one that names it was synced. Raises OSError."""
    missing = []
    part = path.rstrip("/")
    while part and not disk.exists(part):
        missing.append(part)
        part = part.rpartition("/")[0]
    disk.make_directory(path)
    for part in missing:
        parent, slash, _ = part.rpartition("/")
        disk.sync_directory(parent or slash or ".")


def identify(disk: Disk, path: str, random: Random) -> tuple[bytes, bytes]:
    """(node uuid, disk uuid); a new directory gets both. Raises CorruptFile: unreadable, and there are shards."""
    name = f"{path}/node.id"
    if disk.exists(name):
        file = disk.open(name)
        data = file.read(64, 0)
        file.close()
        if len(data) >= 40 and data[:4] == b"SKN1" and crc32c(data[8:40]) == int.from_bytes(data[4:8], "little"):
            return data[8:24], data[24:40]
        if disk.list(f"{path}/shards"):
            raise CorruptFile(
                f"{name} is not a streamkit node's identity", try_="restore node.id from a copy of the directory",
                path=name, position=0, reason="node.id",
            )  # fmt: skip
    body = random.uuid() + random.uuid()
    file = disk.open(name, create=True)
    try:
        file.write([b"SKN1" + crc32c(body).to_bytes(4, "little") + body], 0)
        file.sync()
    finally:
        file.close()
    disk.sync_directory(path)
    return body[:16], body[16:]


def read_node_facts(disk: Disk, path: str) -> tuple[int, NodeFacts | None]:
    """(generation, facts); None for a new directory; unclean when both slots are bad."""
    name = f"{path}/super"
    if not disk.exists(name):
        return 0, None
    file = disk.open(name)
    try:
        slot = read_slots(file.read(2 * SLOT_BYTES, 0))
    finally:
        file.close()
    facts = NodeFacts.from_bytes(slot[1]) if slot else None
    return (slot[0] if slot else 0), facts or NodeFacts(boot_id="", clean=False)


def write_node_facts(disk: Disk, path: str, generation: int, facts: NodeFacts) -> None:
    """Durable when it returns. Raises OSError."""
    file = disk.open(f"{path}/super", create=True)
    try:
        write_slot(file, generation, facts.to_bytes())
        file.sync()
    finally:
        file.close()
    disk.sync_directory(path)
