"""Hostile bytes in every kind of file that a data directory holds, coverage-guided.

    pip install atheris && python -m tests.fuzz.fuzz_files -atheris_runs=200000

`one_input` is also what tests/fuzz/test_fuzz_files.py runs on random damage, without atheris. The first byte of an
input says which kind of file the rest is. Checksums are made to fit too, for otherwise nothing behind them is reached.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable

from streamkit._core import segment
from streamkit._core.files import crc32c
from streamkit._core.index import SparseIndex
from streamkit._core.producers import ProducerTable
from streamkit.errors import CorruptFile
from streamkit.simulator.disk import DiskFaults, DiskOfProcess, SimulatedDisk
from streamkit.simulator.loop import Process
from streamkit.storage import ClusterFacts, LogDirectory
from streamkit.storage.checkpoint import unpack_epochs
from streamkit.storage.identity import identify, read_cluster
from streamkit.storage.inspect import inspect_file
from streamkit.storage.journal_files import read_header
from streamkit.storage.marks import read_mark
from streamkit.storage.pledges import read_pledges
from streamkit.storage.super_slots import NodeFacts, ShardFacts, read_slots
from tests.oracles_storage import SHARDS, SMALL, Machine, SeededRandom, seal, wait_for

KINDS = (".jrn", ".log", ".idx", ".psn", "super", "epochs", "node.id", "mark.0", "mark.1", "pledges", "cluster")
SHARD = SHARDS[0]
SEED = crc32c(SHARD)
GROUP = 4096                                # a journal's groups begin at multiples of this


@functools.cache
def sound_files() -> dict[str, bytes]:
    """Path → content of a small directory whose journal still holds everything; empty files left out."""
    machine = Machine()

    async def fill(runtime) -> None:
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards(SHARDS[:2])
        for number in range(24):
            log = directory.shards[SHARDS[number % 2]]
            batch = seal([bytes([number]) * 6000] * 2, producer=(7 + number % 3, 1, number // 6 * 2))
            if number % 2 == 0:
                log.append(batch, now_ms=runtime.clock.now_ms(), epoch=1 + number // 12, durability="fsync")
            else:
                log.append(seal([b"x" * 300]), now_ms=runtime.clock.now_ms(), epoch=1, durability="os")
            await wait_for(directory, lambda log=log: log.segment_end == log.log_end)
        await directory.promise(dict.fromkeys(SHARDS[:2], 5))
        await directory.write_cluster(ClusterFacts(cluster="ab" * 16, node="one"))
        await directory.write_cluster(ClusterFacts(cluster="ab" * 16, node="one", starts=1, next_starts=2))
        await directory.close()

    machine.run(fill)
    contents = {path: machine.disk.names[path] for path in machine.disk.files()}
    return {path: inode.content[:] for path, inode in contents.items() if inode is not None and inode.content}


def kind_of(path: str) -> int:
    """The number of the path's kind; small files of other kinds have their checksum where `epochs` has it."""
    return next((number for number, ending in enumerate(KINDS) if path.endswith(ending)), KINDS.index("epochs"))


def resealed(kind: int, data: bytes) -> bytes:
    """The same with checksums that fit, as far as the file's kind has any at a known place."""
    whole = bytearray(data)
    if KINDS[kind] in (".psn", "epochs", "node.id"):
        whole[4:8] = struct.pack("<I", crc32c(bytes(whole[8:])))
    elif KINDS[kind].startswith("mark"):
        end = 200 + int.from_bytes(whole[8:12], "little") + int.from_bytes(whole[12:16], "little")
        whole[4:8] = struct.pack("<I", crc32c(bytes(whole[8:end])))
    elif KINDS[kind] == "pledges":
        for at in range(0, len(whole) - 24, 512):
            end = at + 24 + 24 * int.from_bytes(whole[at + 16 : at + 20], "little")
            if whole[at : at + 4] == b"SKV1" and end <= len(whole):
                whole[at + 4 : at + 8] = struct.pack("<I", crc32c(bytes(whole[at + 8 : end])))
    elif KINDS[kind] in ("super", "cluster"):
        for at in (0, 4096):
            size = int.from_bytes(whole[at + 16 : at + 20], "little")
            if at + 20 + size <= len(whole):
                whole[at + 4 : at + 8] = struct.pack("<I", crc32c(bytes(whole[at + 8 : at + 20 + size])))
    elif KINDS[kind] == ".jrn":
        for at in range(GROUP, len(whole), GROUP):
            size = int.from_bytes(whole[at + 28 : at + 32], "little")
            if whole[at : at + 4] == b"SKG1" and 8 < size <= len(whole) - at:
                whole[at + 4 : at + 8] = struct.pack("<I", crc32c(bytes(whole[at + 8 : at + size])))
    elif KINDS[kind] == ".log":
        _reseal_batches(whole)
    return bytes(whole)


def _reseal_batches(whole: bytearray) -> None:
    at = 0
    while len(whole) - at >= 112 and whole[at : at + 2] == b"SK":
        size = int.from_bytes(whole[at + 4 : at + 8], "little")
        if not 112 <= size <= len(whole) - at:
            return
        whole[at + 32 : at + 36] = struct.pack("<I", crc32c(bytes(whole[at + 36 : at + size])))
        stamped = bytes(whole[at : at + 20]) + bytes(whole[at + 24 : at + 36])
        whole[at + 20 : at + 24] = struct.pack("<I", crc32c(stamped, SEED))
        at += size


def one_input(data: bytes) -> None:
    """Whatever the bytes are: the parser refuses them, or what it reads lies within them."""
    if not data:
        return
    kind = data[0] % len(KINDS)
    for content in (data[1:], resealed(kind, data[1:])):
        READERS[KINDS[kind]](content)


def _read_index(data: bytes) -> None:
    index = SparseIndex.from_bytes(data, 1 << 26)
    assert len(index) * 16 <= len(data)
    for wanted in (0, 5, 1 << 63):
        assert index.find(wanted)[1] < 1 << 26
        assert index.find_time(wanted)[1] < 1 << 26


def _read_producers(data: bytes) -> None:
    found = ProducerTable.from_bytes(data, 5)
    if found is None:
        return
    table, position, sequence = found
    assert ProducerTable.from_bytes(table.to_bytes(position, sequence), 5) is not None
    table.replay(7, 1, 0, 2, 5, 5)


def _read_super(data: bytes) -> None:
    found = read_slots(data)
    if found is not None:
        assert len(found[1]) <= len(data)
        ShardFacts.from_bytes(found[1])
        NodeFacts.from_bytes(found[1])


def _read_epochs(data: bytes) -> None:
    found = unpack_epochs(data)
    assert found is None or len(found) * 12 <= len(data)


def _inspected(path: str, data: bytes) -> None:
    disk = SimulatedDisk(1, DiskFaults())
    local = DiskOfProcess(disk, Process("node"))
    parent = path.rpartition("/")[0]
    local.make_directory(parent)
    local.open(path, create=True).write([data], 0)
    try:
        facts = list(inspect_file(local, path))
    except CorruptFile:
        return
    assert all(0 <= fact.get("position", 0) <= len(data) for fact in facts)


def _read_segment(data: bytes) -> None:
    for with_body in (True, False):
        found = segment.walk(data, 0, 0, SEED, with_body=with_body)
        assert found.position <= len(data)
        assert sum(batch[3] for batch in found.batches) == found.position
    place = segment.find_batch(data, SEED, 0, 1 << 62)
    assert place is None or place[0] + 112 <= len(data)
    segment.read_trailer(data, SEED)
    _inspected(f"data/shards/{SHARD.hex()}/{0:020d}.log", data)


def _read_journal(data: bytes) -> None:
    read_header(data)
    _inspected(f"data/journal/{1:016d}.jrn", data)


def _at(path: str, data: bytes) -> DiskOfProcess:
    local = DiskOfProcess(SimulatedDisk(1, DiskFaults()), Process("node"))
    local.make_directory(path.rpartition("/")[0])
    local.make_directory("data/shards/some")
    local.open(path, create=True).write([data], 0)
    return local


def _read_identity(data: bytes) -> None:
    try:
        node, disk = identify(_at("data/node.id", data), "data", SeededRandom(1))
    except CorruptFile:
        return
    assert len(node) == len(disk) == 16


def _read_mark(data: bytes) -> None:
    local = _at("data/shards/some/mark.0", data)
    if len(data) > 52:
        boot = data[16:52].rstrip(b"\0").decode("ascii", "replace")
        assert read_mark(local, "data/shards/some", boot, SEED, data[56:72], 5) is None, "no segment bears it out"


def _read_pledges(data: bytes) -> None:
    for expected in (False, True):
        pledged = read_pledges(_at("data/pledges", data), "data", expected=expected)
        assert (len(pledged.promises) - 1) * 24 <= len(data)


def _read_cluster(data: bytes) -> None:
    try:
        generation, facts = read_cluster(_at("data/cluster", data), "data")
    except CorruptFile:
        return
    assert facts is None or (generation >= 0 and isinstance(facts.node, str))


READERS: dict[str, Callable[[bytes], None]] = {
    ".jrn": _read_journal, ".log": _read_segment, ".idx": _read_index, ".psn": _read_producers,
    "super": _read_super, "epochs": _read_epochs, "node.id": _read_identity,
    "mark.0": _read_mark, "mark.1": _read_mark, "pledges": _read_pledges, "cluster": _read_cluster,
}  # fmt: skip


def seeds() -> list[bytes]:
    """Sound files of every kind, to start from; of a journal as much as was written."""
    found = []
    for path, content in sound_files().items():
        if not path.endswith(".lock") and any(path.endswith(ending) for ending in KINDS):
            found.append(bytes([kind_of(path)]) + content[: 48 * 1024])
    assert {data[0] for data in found} == set(range(len(KINDS))), "a file of every kind"
    return found


def main() -> None:
    import tempfile
    from pathlib import Path

    import atheris  # not a dependency: it has no wheel for every Python that streamkit runs on

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], atheris.instrument_func(one_input))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
