"""One seed, one run, one verdict; or many seeds, shared out among processes.

    start the node ▸ create the stream ▸ clients begin ▸ harm for a while ▸ heal ▸ everything must come to rest
                   ▸ read everything ▸ judge

The quiet phase at the end is where liveness is seen: every put gets its answer and the application's checkpoints reach
the end of every shard, within a bounded virtual time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import multiprocessing
import random
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from streamkit.errors import StreamkitError
from streamkit.simulator.checkers import judge
from streamkit.simulator.cluster import Cluster
from streamkit.simulator.cluster_nemesis import ClusterNemesis
from streamkit.simulator.delivering import judge_delivered
from streamkit.simulator.faults import Faults, draw_cluster_faults, draw_delivering, draw_faults, draw_relaying
from streamkit.simulator.loop import Gone, OutOfTime, Stuck
from streamkit.simulator.nemesis import Nemesis
from streamkit.simulator.oracle import History
from streamkit.simulator.relaying import judge_relayed
from streamkit.simulator.watch import Watch
from streamkit.simulator.workload import Workload
from streamkit.simulator.world import World

QUIET_SECONDS = 90.0
_ROTTEN_SECONDS = 3.0
_CHUNK_SEEDS = 25
_STALLED_LOOKS = 80


@dataclass(slots=True)
class Report:
    """violations: empty when every promise was kept. command: replays the run. log: what happened when."""

    seed: int
    violations: list[str]
    nodes: int = 1
    counts: dict[str, int] = field(default_factory=dict)
    node_starts: int = 0
    acts: tuple[str, ...] = ()
    virtual_seconds: float = 0.0
    callbacks: int = 0
    seconds: float = 0.0
    digest: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        return f"streamkit simulate --seed {self.seed}" + ("" if self.nodes > 1 else " --alone")

    def __str__(self) -> str:
        if not self.violations:
            return f"seed {self.seed}: every promise was kept"
        lines = [f"seed {self.seed}: {len(self.violations)} violations; replay with: {self.command}"]
        return "\n".join([*lines, *(f"  {violation}" for violation in self.violations[:20])])


def run(seed: int, faults: Faults | None = None, *, alone: bool = True) -> Report:
    """A whole life of a node or a cluster. faults: None draws them from the seed, as `streamkit simulate` does.

    alone: those of one node without a cluster.
    """
    began = time.perf_counter()
    if faults is None:
        faults = (draw_faults if alone else draw_cluster_faults)(random.Random(f"faults {seed}"))
        draw_relaying(faults, seed)
        draw_delivering(faults, seed)
    with _quiet_collection():
        report = _run(seed, faults)
        while gc.collect():                    # once more when the ends of coroutines left something behind
            continue
    report.seconds = time.perf_counter() - began
    return report


def _run(seed: int, faults: Faults) -> Report:
    world = World(seed, faults)
    history = History(rot=faults.rot)
    with _watched_log(history, world):
        violations = _live(world, history)
        violations += judge(history, rot=faults.rot, whole=not violations and not history.stalled)
    world.close()
    return Report(
        seed=seed,
        violations=violations,
        nodes=faults.nodes,
        counts=history.counts(),
        node_starts=sum(" start n" in line for line in history.log),
        acts=tuple(faults.acts),
        virtual_seconds=world.loop.time(),
        callbacks=world.loop.callbacks,
        digest=history.digest(),
        log=history.log,
    )


def _live(world: World, history: History) -> list[str]:
    cluster = Cluster(world, history)
    try:
        world.loop.seconds_max = 4 * QUIET_SECONDS
        world.loop.run_until_complete(_life(world, history, cluster))
    except (Stuck, OutOfTime, _TooLate) as error:
        # A damaged directory may keep the node from starting: that is an answer too.
        return [] if world.faults.rot else [f"no progress: {error}"]
    except StreamkitError as error:
        return [f"the run broke off: {type(error).__name__}: {error}"]
    finally:
        cluster.forget()
    return [f"unhandled {text}" for text in world.loop.unhandled]


class _TooLate(Exception):
    """Something that must happen in the quiet phase did not."""


async def _life(world: World, history: History, cluster: Cluster) -> None:
    workload = Workload(world, history, cluster.addresses)
    watch = Watch(cluster, history)
    try:
        cluster.start()
        await _within(QUIET_SECONDS, cluster.until_ready(), "the node starts")
        await workload.create_stream()
        loop = asyncio.get_running_loop()
        background = [loop.create_task(cluster.supervise())]
        if cluster.many:
            background.append(loop.create_task(watch.run()))
        workload.start()
        nemesis = (ClusterNemesis if cluster.many else Nemesis)(world, cluster, workload)
        await nemesis.harm()
        await nemesis.heal()
        rest = loop.create_task(_come_to_rest(world, workload, watch))
        ends: list[asyncio.Task[None]] = [rest]
        if world.faults.may_stall:
            ends.append(loop.create_task(_until_stalled(watch)))
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if rest in done:
            try:
                rest.result()
            except _TooLate as error:
                raise _TooLate(f"{error}; {watch.unsettled()}" if cluster.many else str(error)) from None
        else:
            history.stalled = watch.unsettled()
        background += ends
        for task in background:
            task.cancel()
    finally:
        workload.forget()


async def _until_stalled(watch: Watch) -> None:
    """A shard has too few votes, for so long that no leader of it is at work."""
    looks = 0
    while looks < _STALLED_LOOKS:
        looks = looks + 1 if watch.stalled() else 0
        await asyncio.sleep(0.1)


async def _come_to_rest(world: World, workload: Workload, watch: Watch) -> None:
    seconds = _ROTTEN_SECONDS if world.faults.rot else QUIET_SECONDS
    await _within(seconds, workload.producers_done(), "every put is answered")
    if watch.cluster.many:
        # What nobody could tell the outcome of may become committed until then, and be read by others.
        await _within(seconds, watch.settled(), "every copy holds everything")
    await _within(seconds, workload.read_all(), "everything can be read")
    if world.faults.workers:
        await _within(seconds, workload.workers_done(), "checkpoints reach the end of every shard")
    if workload.relaying is not None:
        await _within(seconds, workload.relaying.done(workload.shards), "everything is copied")
        workload.history.wrong += judge_relayed(workload.relaying, workload.history.final)
    if workload.delivering is not None:
        await _within(seconds, workload.delivering.done(workload.shards), "everything is delivered")
        workload.history.wrong += judge_delivered(workload.delivering, workload.history.final)
    if watch.cluster.many:
        await _within(seconds, watch.settled(), "every copy holds everything")
        await watch.compare_copies()


async def _within(seconds: float, work: Awaitable[Any], what: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        raise _TooLate(f"not within {seconds:.0f} quiet seconds: {what}") from None


class _ErrorLog(logging.Handler):
    """What the product logs as an error with a cause that is no StreamkitError is a defect."""

    def __init__(self, history: History, world: World) -> None:
        super().__init__(logging.DEBUG)
        self._history = history
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        facts = getattr(record, "facts", error or "")
        self._history.note(self._world.loop.time(), f"{record.levelname.lower()} {record.getMessage()} {facts}")
        if error is not None and not isinstance(error, StreamkitError | OSError | Gone):
            self._history.wrong.append(f"logged {record.getMessage()}: {error!r}")


@contextlib.contextmanager
def _watched_log(history: History, world: World) -> Iterator[None]:
    logger = logging.getLogger("streamkit")
    before = logger.level, logger.propagate, logger.handlers
    logger.handlers = [_ErrorLog(history, world)]
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers = before


@contextlib.contextmanager
def _quiet_collection() -> Iterator[None]:
    """Code of killed processes is thrown away at the end, all at once; what it would have said is not heard."""
    hook, collecting = sys.unraisablehook, gc.isenabled()
    gc.disable()
    sys.unraisablehook = _ignore
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook
        if collecting:
            gc.enable()


def _ignore(_: Any) -> None:
    return


def _run_chunk(seeds: range, alone: bool) -> list[Report]:
    gc.freeze()                                    # what is there before the runs need not be looked through after each
    try:
        reports = [run(seed, alone=alone) for seed in seeds]
    finally:
        gc.unfreeze()                              # this process may be somebody else's, who wants to end cleanly
    for report in reports:
        if not report.violations:
            report.log = []
    return reports


def run_many(
    first: int, count: int, *, processes: int = 1, on_report: Callable[[Report], None] | None = None,
    alone: bool = True,
) -> list[Report]:  # fmt: skip
    """Seeds [first, first + count); those that broke a promise. on_report: called for each as it comes in."""
    chunks = [range(at, min(at + _CHUNK_SEEDS, first + count)) for at in range(first, first + count, _CHUNK_SEEDS)]
    failed: list[Report] = []
    for reports in _chunk_reports(chunks, processes, alone):
        for report in reports:
            if on_report is not None:
                on_report(report)
            if report.violations:
                failed.append(report)
    return failed


def _chunk_reports(chunks: list[range], processes: int, alone: bool) -> Iterator[list[Report]]:
    work = partial(_run_chunk, alone=alone)
    if processes <= 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(work, chunks)
