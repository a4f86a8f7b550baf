"""Reading again what was written long ago, at a pace nobody notices: damage is found while other copies are whole.

Sealed segments of all shards, one after the other, then from the beginning. What is found is in the log's `damages` and
told to `on_damage`; repairing is for who knows the other copies. Read `Scrubber._run` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from streamkit._core.log import Segment
from streamkit._core.segment import SHORT, find_batch, walk
from streamkit.runtime.interfaces import Clock, Disk, Executor, File
from streamkit.storage.disk_errors import MEDIUM
from streamkit.storage.shard_log import Damage, ShardLog

logger = logging.getLogger("streamkit.storage")
_STEP_BYTES = 256 * 1024
_PAUSE_SECONDS = 60.0


class Scrubbed(Protocol):
    """What the scrubber needs of a LogDirectory."""

    shards: dict[bytes, ShardLog]

    @property
    def tools(self) -> tuple[Disk, Executor]: ...


class _Place:
    """How far one segment is read. end, limit: of what is looked at, as it was when it was begun."""

    def __init__(self, log: ShardLog, segment: Segment) -> None:
        self.path, self.seed = log.segment_path(segment), log.seed
        self.position, self.sequence, self.epoch = 0, segment.base, 0
        self.end, self.limit = segment.end, segment.written_position
        self.window = _STEP_BYTES

    @property
    def done(self) -> bool:
        return self.position >= self.limit or self.sequence >= self.end


class Scrubber:
    """start() and `await stop()`. passes: how often everything was read; bytes_read: since start()."""

    def __init__(
        self, directory: Scrubbed, clock: Clock, bytes_per_second: int, on_damage: Callable[[ShardLog, Damage], None]
    ) -> None:
        assert bytes_per_second > 0, "without a budget nothing is read"
        self._directory, self._clock, self._on_damage = directory, clock, on_damage
        self._bytes_per_second = bytes_per_second
        self._task: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._ahead_ms = 0.0                       # monotonic: when the budget is used up to now
        self.passes = 0
        self.bytes_read = 0

    def start(self) -> None:
        assert self._task is None, "started once"
        self._task = asyncio.get_running_loop().create_task(self._run(), name="storage.scrub")

    async def stop(self) -> None:
        self._stopped.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        while not self._stopped.is_set():
            for uuid in list(self._directory.shards):
                log = self._directory.shards.get(uuid)
                if log is not None:
                    await self._scrub(log)
                if self._stopped.is_set():
                    return
            self.passes += 1
            await self._rest(_PAUSE_SECONDS)

    async def _scrub(self, log: ShardLog) -> None:
        disk, executor = self._directory.tools
        for segment in list(log.segments):
            if not segment.sealed or segment.end > log.segment_end or segment.end <= log.trim_to:
                continue
            place, changes = _Place(log, segment), log.changes
            while not place.done and not self._stopped.is_set():
                before = place.position
                try:
                    damages = await executor.run(_step, disk, place)
                except OSError as cause:
                    logger.warning("scrub.unreadable", extra={"facts": {"path": place.path, "errno": cause.errno}})
                    lost = Damage(place.path, place.position, place.sequence, place.end, "unreadable")
                    damages = [lost] if cause.errno in MEDIUM else []
                    place.position = place.limit
                if log.dropped or log.changes != changes or segment.end <= log.trim_to:
                    break                                      # what was read is not the log any more
                for damage in damages:
                    if log.note_damage(damage):
                        self._on_damage(log, damage)
                await self._pay(max(place.position - before, 4096))

    async def _pay(self, size: int) -> None:
        self.bytes_read += size
        now = float(self._clock.monotonic_ms())
        self._ahead_ms = max(self._ahead_ms, now) + size * 1000 / self._bytes_per_second
        if self._ahead_ms > now:
            await self._rest((self._ahead_ms - now) / 1000)

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return


def _step(disk: Disk, place: _Place) -> list[Damage]:
    """On another thread: one window further."""
    if not disk.exists(place.path):
        start, place.position = place.sequence, place.limit
        return [Damage(place.path, 0, start, place.end, "missing file")]
    file = disk.open(place.path)
    try:
        return _read_on(file, place)
    finally:
        file.close()


def _read_on(file: File, place: _Place) -> list[Damage]:
    before, wanted = place.position, min(place.window, place.limit - place.position)
    data = file.read(wanted, before)
    found = walk(data, before, place.sequence, place.seed, sequence_max=place.end, epoch_min=place.epoch)
    place.position, place.sequence, place.epoch = found.position, found.sequence, found.epoch
    place.window = _STEP_BYTES
    if place.sequence >= place.end:
        return []
    if place.position < place.limit and len(data) == wanted:
        if place.position - before == wanted:
            return []
        if found.stop == SHORT and place.position + found.needed <= place.limit:
            place.window = max(_STEP_BYTES, found.needed)
            return []
    at, sequence = place.position, place.sequence
    after = find_batch(file.read(place.limit - at, at), place.seed, sequence + 1, place.end)
    place.position, place.sequence = (at + after[0], after[1]) if after else (place.limit, place.end)
    return [Damage(file.path, at, sequence, place.sequence, "not a sound batch")]
