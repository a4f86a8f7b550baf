"""Cut nodes off from each other under load, both ways and one way, each in a network namespace of its own. As root:

    python -m tests.end_to_end.partition --times 30

    whole      a node's cable is pulled: it reaches nobody, nobody reaches it, clients neither
    pair       two nodes do not reach each other; both reach everybody else
    one way    what a node sends to another vanishes silently; what the other sends arrives

A silent one-way cut is a permanent wrong neighbour entry: frames leave and nobody takes them. The nodes agree in a
file, so the one that is cut off still reads and writes the store: it must not lead without a majority all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.end_to_end.nodes import Nodes, Placing, nodes, sqlite_url
from tests.end_to_end.processes import end_in_order
from tests.end_to_end.recording import Load, copies_agree, load

NAMES = "abc"
_NOBODY = "02:00:00:00:00:01"


class Wires:
    """A bridge with a namespace behind each port: 10.77.N.1 is this side, .2 … the nodes."""

    def __init__(self) -> None:
        self._tag = f"{os.getpid() % 4096:x}"
        self._net = f"10.77.{os.getpid() % 250 + 1}"
        self.bridge = f"skb{self._tag}"

    def namespace(self, name: str) -> str:
        return f"sk{self._tag}-{name}"

    def address(self, name: str) -> str:
        return f"{self._net}.{2 + NAMES.index(name)}"

    def placing(self, name: str) -> Placing:
        return Placing(self.address(name), ("ip", "netns", "exec", self.namespace(name)))

    def lay(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for name in NAMES:
            space, outer = self.namespace(name), f"sk{self._tag}{name}"
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outer, "master", self.bridge, "up")
            self._inside(name, "link", "set", "lo", "up")
            self._inside(name, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            self._inside(name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        for name in NAMES:
            _ip("netns", "del", self.namespace(name), check=False)
            _ip("link", "del", f"sk{self._tag}{name}", check=False)
        _ip("link", "del", self.bridge, check=False)

    def pull(self, name: str) -> None:
        _ip("link", "set", f"sk{self._tag}{name}", "down")

    def silence(self, sender: str, receiver: str) -> None:
        self._inside(
            sender, "neigh", "replace", self.address(receiver), "lladdr", _NOBODY, "nud", "permanent", "dev", "eth0"
        )

    def heal(self) -> None:
        for name in NAMES:
            _ip("link", "set", f"sk{self._tag}{name}", "up")
            for other in NAMES:
                if other != name:
                    self._inside(name, "neigh", "del", self.address(other), "dev", "eth0", check=False)

    def _inside(self, name: str, *arguments: str, check: bool = True) -> None:
        _ip("-n", self.namespace(name), *arguments, check=check)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


@contextlib.contextmanager
def wires() -> Iterator[Wires]:
    made = Wires()
    try:
        made.lay()
        yield made
    finally:
        made.remove()


def cut(network: Wires, draw: random.Random) -> str:
    """One of the three kinds; what was cut, in words."""
    one, other = draw.sample(NAMES, 2)
    kind = draw.choice(["whole", "pair", "one way"])
    if kind == "whole":
        network.pull(one)
        return f"{one} is cut off"
    network.silence(one, other)
    if kind == "pair":
        network.silence(other, one)
        return f"{one} and {other} do not reach each other"
    return f"{one} does not reach {other}"


async def cut_again_and_again(
    network: Wires, running: Load, times: int, draw: random.Random
) -> list[tuple[str, float]]:
    """What was cut, and how long it took meanwhile until every shard acknowledged again."""
    seen = []
    for _ in range(times):
        what = cut(network, draw)
        seconds = await running.goes_on()
        await asyncio.sleep(draw.uniform(0.0, 4.0))
        network.heal()
        await running.goes_on()
        seen.append((what, seconds))
        print(f"{what}: {seconds:.2f} s until every shard went on", flush=True)
    return seen


async def run(folder: Path, times: int, seed: int) -> tuple[Load, list[tuple[str, float]]]:
    """Raises AssertionError when a promise was broken. All is as it was when it returns."""
    with wires() as network, nodes(folder, sqlite_url(folder), NAMES, placing=network.placing) as cluster:
        async with load(cluster) as running:
            seen = await cut_again_and_again(network, running, times, random.Random(seed))
            network.heal()
            await running.goes_on()
        await _stop(cluster)
        assert await copies_agree([node.data_dir for node in cluster]) == []
        return running, seen


async def _stop(cluster: Nodes) -> None:
    for node in cluster:
        await asyncio.to_thread(node.terminate)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=30, help="how often to cut (default 30)")
    parser.add_argument("--seed", type=int, default=1, help="of what is cut, and when (default 1)")
    arguments = parser.parse_args()
    end_in_order()
    if os.geteuid() != 0:
        print("error: network namespaces need root")
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamkit-partition-") as folder:
        try:
            running, seen = asyncio.run(run(Path(folder), arguments.times, arguments.seed))
        except AssertionError as error:
            print(error)
            for log in sorted(Path(folder).glob("*.log")):
                print(f"---- {log.name}\n{log.read_text()[-3000:]}")
            return 1
    waits = sorted(seconds for _, seconds in seen)
    print(f"{len(seen)} cuts in {time.monotonic() - began:.0f} s")
    print(f"put {running.outcome.put}, acknowledged {running.acknowledged}")
    print(f"every shard went on after {waits[len(waits) // 2]:.2f} s (median), {waits[-1]:.2f} s (longest)")
    print("none lost, none out of order for its key, none twice, all copies agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
