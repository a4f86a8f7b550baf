"""Memory under load: how far a node grows beyond its idle size when nothing that it is given flows off.

Sealed 64-KiB batches come as fast as one client can send them, while readers ask for everything and take nothing. At
level leader the node answers before the disk has the batch, so that the disk is the slowest part.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from benchmarks.paths.processes import Node, check, node, run_client
from benchmarks.paths.produce import BATCH_RECORDS
from benchmarks.paths.report import Result, from_client
from streamkit.client import Client
from streamkit.model.shard import Shard
from streamkit.protocol.connection import Connection, Side

MIB = 1 << 20
BUDGET_MIB = 32                        # of what waits, either way
TAIL_MIB = 32                          # of newest batches
MARGIN_MIB = 48                        # buffers of connections and commits, journal, allocator
SHARDS = 4
READERS = 16
UNDER_WAY = 900                        # batches; a client's own buffer has room for 64 MiB


@contextlib.contextmanager
def readers_that_take_nothing(running: Node, shards: tuple[Shard, ...], count: int) -> Iterator[None]:
    """Each asks for all of every shard again and again, greets, and never reads another byte."""
    host, port = running.url.removeprefix("streamkit://").split(":")
    ended = threading.Event()
    sockets = []

    def ask(connected: socket.socket, wire: Connection) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while not ended.wait(0.2):
                for shard in shards:
                    number += 1
                    wire.writer.fetch(number, shard.uuid, 0, 8 * MIB, 0)
                connected.sendall(b"".join(map(bytes, wire.take())), socket.MSG_DONTWAIT)

    askers = []
    for _ in range(count):
        connected = socket.create_connection((host, int(port)))
        wire = Connection(Side.CLIENT, "mute")
        connected.sendall(b"".join(map(bytes, wire.take())))
        while not wire.peer:
            wire.feed(connected.recv(4096))
        sockets.append(connected)
        askers.append(threading.Thread(target=ask, args=(connected, wire), daemon=True))
        askers[-1].start()
    try:
        yield
    finally:
        ended.set()
        for asker in askers:
            asker.join()
        for connected in sockets:
            connected.close()


def under_load(batches: int, level: str, readers: int = READERS) -> list[Result]:
    """Growth of the node's resident memory, at its highest; the check is that it keeps within its budget."""
    settings = {"STORAGE__MEMORY_BYTES_MAX": str(BUDGET_MIB * MIB), "STORAGE__TAIL_BYTES_MAX": str(TAIL_MIB * MIB)}
    with node(**settings) as running:
        with Client(url=running.url) as client:
            stream = client.create_stream("load", shards=SHARDS, durability=level)
        idle_mib = running.memory_mib("VmRSS")
        with readers_that_take_nothing(running, stream.shards, readers):
            measured = run_client(
                "sealed", running, stream="load", batches=batches, batch_records=BATCH_RECORDS, window=UNDER_WAY,
            )  # fmt: skip
        grown_mib = running.memory_mib() - idle_mib
    allowed_mib = BUDGET_MIB + TAIL_MIB + MARGIN_MIB
    check(grown_mib <= allowed_mib, f"grew by {grown_mib:.0f} MiB, {allowed_mib} were allowed")
    row = from_client(
        measured, name=f"memory under load, {level}", shape=f"64-KiB batches, {readers} readers that take nothing",
        durability=level,
    )  # fmt: skip
    row.server_memory_mib = idle_mib + grown_mib
    row.figure = f"{grown_mib:.0f} MiB above idle, {BUDGET_MIB} + {TAIL_MIB} configured"
    row.facts = {"grown_mib": grown_mib, "budget_mib": BUDGET_MIB, "tail_mib": TAIL_MIB, "margin_mib": MARGIN_MIB}
    return [row]
