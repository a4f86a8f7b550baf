"""Power loss of all nodes of a cluster at once, under load, again and again. As root, on Linux:

    python -m tests.end_to_end.power_loss --times 10
    python -m tests.end_to_end.power_loss --times 3 --durability os
    python -m tests.end_to_end.power_loss --times 5 --one          # the disk of one node fails while it runs

Each node, and the file where they agree, has a small ext4 of its own on a loop device. EXT4_IOC_SHUTDOWN takes all of
them away at one moment, with everything that was not synced; the processes are killed, the file systems mounted again,
and the nodes started under another boot id, as after a real power cut. Then every record is read back.

With durability fsync nothing acknowledged may be missing. With durability os a shard may come back without a leader:
then it says so and waits; what it serves must not lack anything that was acknowledged. A node whose own disk fails
ends; the others lead on, and producers are told of no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from streamkit.client.client import AsyncClient
from streamkit.model.stream import Durability
from tests.end_to_end.kill_broker import STREAM, Outcome, produce, read_shard
from tests.end_to_end.nodes import Nodes, Placing, nodes
from tests.end_to_end.processes import end_in_order
from tests.end_to_end.recording import create_stream, read_back

_EXT4_IOC_SHUTDOWN = 0x8004587D            # _IOR('X', 125, u32)
_NO_LOG_FLUSH = 2
_IMAGE_BYTES = 512 * 1024 * 1024
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAMES = "abc"


class Volume:
    """A file system of its own, whose power can be cut."""

    def __init__(self, image: Path, mounted: Path) -> None:
        self.image, self.mounted = image, mounted
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        mounted.mkdir()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mounted)], check=True)

    def cut(self) -> None:
        handle = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.mounted)], check=True)


@contextlib.contextmanager
def volumes(folder: Path, names: Iterable[str] = (*NAMES, "store")) -> Iterator[dict[str, Volume]]:
    """One a node, and "store"."""
    made: dict[str, Volume] = {}
    try:
        for name in names:
            made[name] = Volume(folder / f"{name}.img", folder / f"{name}-disk")
            made[name].mount()
        yield made
    finally:
        for volume in made.values():
            subprocess.run(["umount", "-l", str(volume.mounted)], check=False, capture_output=True)


def under_boot(folder: Path) -> Placing:
    """Processes that read the boot id which stands in folder/boot_id: a mount of their own over the kernel's."""
    script = f'mount --bind "{folder}/boot_id" {_BOOT_ID} && exec "$@"'
    return Placing(command=("unshare", "--mount", "sh", "-c", script, "sh"))


def boot(folder: Path) -> None:
    (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")


async def lose_power(cluster: Nodes, disks: dict[str, Volume], folder: Path) -> None:
    for node in cluster:
        node.pause()                       # without power nobody says that a disk has failed
    for volume in disks.values():
        volume.cut()
    cluster.kill()
    for volume in disks.values():
        volume.unmount()
        volume.mount()
    boot(folder)


async def lose_disk(cluster: Nodes, disks: dict[str, Volume], name: str) -> None:
    """Of a node that runs: it ends by itself, and comes back with what was on disk."""
    node = cluster[name]
    disks[name].cut()
    await asyncio.to_thread(node.refused)
    disks[name].unmount()
    disks[name].mount()
    node.start()
    await asyncio.to_thread(node.wait_ready)


async def run(
    folder: Path, times: int, durability: Durability, seconds: float, *, one: bool = False
) -> tuple[Outcome, int]:
    """(what producers were told and what was found, shards that stall at the end). Raises AssertionError."""
    boot(folder)
    with volumes(folder) as disks:
        url = f"sqlite://{disks['store'].mounted}/cluster.sqlite"
        # Other nodes' mounts of their own would keep a failed disk from being mounted anew.
        placing = None if one else lambda _: under_boot(folder)
        with nodes(folder, url, NAMES, start=False, placing=placing) as cluster:
            for node in cluster:
                node.data_dir, node.notes_dir = disks[node.name].mounted / "data", folder
            cluster.start()
            await create_stream(cluster, 4, durability)
            outcome, stopping = Outcome(), asyncio.Event()
            tasks = [asyncio.create_task(produce(f"p{n}", cluster.url, outcome, stopping)) for n in range(2)]
            stalled: set[int] = set()
            for number in range(times):
                await asyncio.sleep(seconds)
                if one:
                    await lose_disk(cluster, disks, NAMES[number % len(NAMES)])
                    continue
                before = len(outcome.acknowledged)
                await lose_power(cluster, disks, folder)
                print(f"cut the power after {before} acknowledged", flush=True)
                await asyncio.to_thread(cluster.start)
                if durability is not Durability.FSYNC:
                    await asyncio.sleep(seconds + 3)
                    if stalled := await stalling(cluster):
                        break
            stopping.set()
            if stalled:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                outcome.failed.clear()
                await read_what_is_led(cluster, outcome, stalled)
                await accept(cluster, stalled)
            else:
                await asyncio.wait_for(asyncio.gather(*tasks), 150)
                await read_back(cluster, outcome)
    return outcome, len(stalled)


async def stalling(cluster: Nodes) -> set[int]:
    """The shards without a leader; each says why, and what to do."""
    lines = await asyncio.to_thread(cluster.run, "cluster", "status")
    without = [line for line in lines if line.get("kind") == "no_leader"]
    for line in without:
        assert line["reason"] and line["try"], line
        print(f"{line['stream']}/{line['shard']} waits: {line['reason']}; {line['try']}", flush=True)
    return {line["shard"] for line in without if line["stream"] == STREAM}


async def read_what_is_led(cluster: Nodes, outcome: Outcome, stalled: set[int]) -> None:
    """And forget the notes of shards that stall: they serve nothing, so nothing is lost silently."""
    async with AsyncClient(cluster.url) as client:
        for shard in (await client.describe_stream(STREAM)).shards:
            if shard.ordinal not in stalled:
                outcome.found[shard.id] = await read_shard(client, shard)
    outcome.acknowledged = {
        value: place for value, place in outcome.acknowledged.items() if place[0] in outcome.found
    }


async def accept(cluster: Nodes, stalled: set[int]) -> None:
    """An operator says that it may go on; then every shard has a leader again."""
    for ordinal in sorted(stalled):
        await asyncio.to_thread(cluster.run, "cluster", "accept-loss", f"{STREAM}/{ordinal}", "--yes")
    await read_back(cluster, Outcome())
    print(f"{len(stalled)} shards go on after the loss was accepted", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="how often to cut the power (default 10)")
    parser.add_argument("--durability", choices=["fsync", "os"], default="fsync")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load between two cuts (default 2)")
    parser.add_argument("--one", action="store_true", help="only one node's disk fails, while the node runs")
    arguments = parser.parse_args()
    end_in_order()
    if os.geteuid() != 0:
        print("error: mounting needs root")
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamkit-power-") as folder:
        outcome, stalled = asyncio.run(
            run(Path(folder), arguments.times, Durability(arguments.durability), arguments.seconds, one=arguments.one)
        )
        wrong = outcome.wrong()
        what = "disks failed" if arguments.one else "power cuts"
        print(f"{arguments.times} {what} in {time.monotonic() - began:.0f} s, durability {arguments.durability}")
        print(f"put {outcome.put}, acknowledged {len(outcome.acknowledged)}, {stalled} shards stall and say so")
        print("\n".join(wrong[:20]) or "none lost, none out of order for its key, none twice")
        if wrong:
            for log in sorted(Path(folder).glob("*.log")):
                print(f"---- {log}\n{log.read_text()[-3000:]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
