"""SIGKILL any node of a cluster again and again under load, then look whether it kept its word.

    python -m tests.end_to_end.kill_nodes --times 100
    python -m tests.end_to_end.kill_nodes --times 100 --store etcd      # etcd, too, is killed and stopped meanwhile

Idempotent producers put numbered records all the while. At the end every record is read back: what was acknowledged
is there, where it was said to be; each key's records are in order; none is there twice; the copies agree.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.end_to_end.nodes import Nodes, nodes, sqlite_url
from tests.end_to_end.processes import end_in_order
from tests.end_to_end.recording import Load, copies_agree, load
from tests.etcd import Etcd


class Store:
    """Where the nodes agree. `trouble`: what is done to it meanwhile."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.troubles = 0

    def trouble(self, draw: random.Random) -> None:
        """A file needs no process: nothing to kill."""


class EtcdStore(Store):
    def __init__(self, etcd: Etcd) -> None:
        super().__init__(etcd.url)
        self.etcd = etcd
        self._paused = False

    def trouble(self, draw: random.Random) -> None:
        """Killed and begun again, stopped, or woken up."""
        self.troubles += 1
        if self._paused:
            self.etcd.continue_process()
            self._paused = False
        elif draw.random() < 0.5:
            self.etcd.kill()
            self.etcd.start()
        else:
            self.etcd.stop_process()
            self._paused = True

    @property
    def is_paused(self) -> bool:
        return self._paused

    def heal(self) -> None:
        """It runs again."""
        if self._paused:
            self.trouble(random.Random(0))


@contextlib.contextmanager
def store(kind: str, folder: Path) -> Iterator[Store]:
    if kind == "sqlite":
        yield Store(sqlite_url(folder))
        return
    with Etcd(folder / "etcd") as served:
        found = EtcdStore(served)
        try:
            yield found
        finally:
            found.heal()


async def kill_again_and_again(
    cluster: Nodes, running: Load, times: int, draw: random.Random, where: Store, *, most_seconds: float = 0.8
) -> list[float]:
    """One node at a time, or now and then a second before the first is back.

    Returns for how long some shard acknowledged nothing, around each kill.
    """
    gaps = []
    for _ in range(times):
        node = draw.choice(list(cluster))
        watched = asyncio.ensure_future(running.longest_gap(most_seconds + 1.5))
        await asyncio.to_thread(node.kill)
        if draw.random() < 0.3:
            await asyncio.to_thread(where.trouble, draw)
        await asyncio.sleep(draw.uniform(0.0, most_seconds))
        node.start()
        if draw.random() < 0.8:
            if isinstance(where, EtcdStore):
                await asyncio.to_thread(where.heal)        # a node that starts asks the store
            await asyncio.to_thread(node.wait_ready)
            await running.goes_on()
        gaps.append(await watched)
    if isinstance(where, EtcdStore):
        await asyncio.to_thread(where.heal)
    for node in cluster:
        await asyncio.to_thread(node.wait_ready)
    return gaps


async def run(
    kind: str, times: int, folder: Path, *, producers: int = 3, seed: int = 1, most_seconds: float = 0.8
) -> tuple[Load, list[float], int]:
    """The whole trial; raises AssertionError when a promise was broken. The nodes are gone when it returns."""
    with store(kind, folder) as where, nodes(folder, where.url) as cluster:
        async with load(cluster, producers=producers) as running:
            gaps = await kill_again_and_again(
                cluster, running, times, random.Random(seed), where, most_seconds=most_seconds
            )
            await running.goes_on()
        for node in cluster:
            await asyncio.to_thread(node.terminate)
        assert await copies_agree([node.data_dir for node in cluster]) == []
        return running, gaps, cluster.kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="how often to kill a node (default 100)")
    parser.add_argument("--store", choices=["sqlite", "etcd"], default="sqlite", help="where the nodes agree")
    parser.add_argument("--producers", type=int, default=3, help="producers at once (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="of nodes and moments (default 1)")
    arguments = parser.parse_args()
    end_in_order()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamkit-kill-") as folder:
        try:
            running, gaps, kills = asyncio.run(
                run(arguments.store, arguments.times, Path(folder), producers=arguments.producers, seed=arguments.seed)
            )
        except AssertionError as error:
            print(error)
            for log in sorted(Path(folder).glob("*.log")):
                print(f"---- {log.name}\n{log.read_text()[-3000:]}")
            return 1
    gaps.sort()
    print(f"killed a node {kills} times in {time.monotonic() - began:.0f} s")
    print(f"put {running.outcome.put}, acknowledged {running.acknowledged}, failed {len(running.outcome.failed)}")
    print(f"a shard stood still for {gaps[len(gaps) // 2]:.2f} s (median), {gaps[-1]:.2f} s (longest) around a kill")
    print("none lost, none out of order for its key, none twice, all copies agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
