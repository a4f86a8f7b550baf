"""The four servers of the Kinesis API: streamkit's gateway, and the stand-ins as `benchmarks.peers` starts them."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peers.servers import Servers
from benchmarks.peers.system import DISK, ROOT, System, Variant
from benchmarks.peers.systems.kinesis_emulators import SHARDS_MAX, Kinesalite, KinesisLocal, Moto
from benchmarks.peers.systems.streamkit import Streamkit, announcements

SUBSCRIBES = frozenset({"streamkit"})          # the others do not know SubscribeToShard
CBOR = frozenset({"streamkit", "kinesalite", "kinesis-local"})


class Gateway(Streamkit):
    """One node with its HTTP listener; one copy, and every put on disk before it is acknowledged."""

    setup = "This tree: `streamkit serve`, one node, one copy, acknowledged after `fdatasync`."
    variants = (Variant("streamkit", "streamkit", 1, DISK, "fsync (default)"),)

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        servers.run(
            [sys.executable, "-m", "streamkit.cli", "serve", "--data", directory / "data", "--port", "0", "--json"],
            environment={"PYTHONPATH": str(ROOT), "STREAMKIT_STREAMS__SHARDS_MAX": str(SHARDS_MAX)},
        )
        servers.wait(lambda: bool(announcements(servers.log())))
        servers.facts = {"url": announcements(servers.log())[-1]["http"]}
        return servers


class OneByOne(Moto):
    """moto, from one connection: it serves requests in threads, and loses records when two put at once."""

    setup = "PyPI package, `moto_server`; records are in memory. One connection: with several it loses records."

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = super().start(variant, directory)
        servers.facts["connections"] = 1
        return servers


class LevelDb(Kinesalite):
    setup = "npm package on Node.js with a LevelDB directory, which it writes without syncing."


class InMemory(KinesisLocal):
    setup = "npm package (kinesis-mock) on Node.js; records are in memory."


SYSTEMS: tuple[System, ...] = (Gateway(), LevelDb(), InMemory(), OneByOne())
OWN = "streamkit"


def left_out(system: str, work: str) -> str:
    """Why a work is not asked of a system; empty when it is."""
    if work in ("subscribe", "stalled") and system not in SUBSCRIBES:
        return "it has no SubscribeToShard"
    if work == "put-records-cbor" and system not in CBOR:
        return "it does not speak CBOR"
    return ""
