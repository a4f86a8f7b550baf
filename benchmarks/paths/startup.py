"""How long `import streamkit` and `streamkit --help` take, and how fast a node with many shards starts."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.paths.processes import ROOT, Node, check, node, start_node
from benchmarks.paths.report import Result
from streamkit import Client


def imports(repeats: int) -> list[Result]:
    """Median of whole processes, minus an empty Python for the import."""
    empty = _median_ms(["-c", "pass"], repeats)
    loaded = _median_ms(["-c", "import streamkit"], repeats)
    full = _median_ms(["-c", "from streamkit import Client, Consumer, Producer, Reader"], repeats)
    asked = _median_ms(["-m", "streamkit.cli", "--help"], repeats)
    checked = f"median of {repeats} processes"
    return [
        Result(name="import streamkit", shape="beyond Python", figure=f"{loaded - empty:.0f} ms", checked=checked),
        Result(name="import all four faces", shape="beyond Python", figure=f"{full - empty:.0f} ms", checked=checked),
        Result(name="streamkit --help", shape="whole process", figure=f"{asked:.0f} ms", checked=checked),
    ]


def _median_ms(arguments: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        times.append((time.perf_counter() - started) * 1000)
    return sorted(times)[len(times) // 2]


def many_shards(count: int) -> list[Result]:
    """A node with `count` idle shards: how long it takes to open them, and what each holds in memory."""
    limit = {"STREAMS__SHARDS_MAX": str(count + 10)}
    with node(**limit) as first:
        empty_mib = first.memory_mib("VmRSS")
        with Client(url=first.url) as client:
            started = time.perf_counter()
            client.create_stream("idle", shards=count)
            created_seconds = time.perf_counter() - started
        first.stop()
        second = start_node(first.directory, **limit)
        try:
            with Client(url=second.url) as client:
                found = len(client.describe_stream("idle").shards)
            check(found == count, f"{found} of {count} shards after the restart")
            kib = (second.memory_mib("VmRSS") - empty_mib) * 1024 / count
            opened = second.ready_seconds - _ready_seconds_empty()
            return [
                Result(
                    name="open shards", shape=f"{count:,} idle", figure=f"{opened:.2f} s beyond an empty node",
                    durability="fsync", checked=f"{count:,} described",
                ),
                Result(
                    name="create shards", shape=f"{count:,} in one stream", figure=f"{created_seconds:.2f} s",
                    durability="fsync", checked=f"{count:,} described",
                ),
                Result(
                    name="memory of an idle shard", shape=f"{count:,} idle", figure=f"{kib:.1f} KiB",
                    server_memory_mib=second.memory_mib(), checked="resident size, less an empty node's",
                ),
            ]  # fmt: skip
        finally:
            second.stop()


def _ready_seconds_empty() -> float:
    with node() as empty:
        started: Node = empty
        return started.ready_seconds
