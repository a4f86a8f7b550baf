"""Splits, merges and changes of the number of shards, carried out on this node.

    begin ──▶ children's logs ──▶ each parent that is led here: closing batch, safe ──▶ ends noted ──▶ children served
      │             │ fails, and nothing was closed: the plan is dropped, the shards stay open
      └─ from the first closing batch on the plan is finished, by whoever leads a parent, however often that fails

From its closing batch on a shard refuses puts (ShardClosed) but answers repeats of what it holds. Between that and the
transaction nobody takes the keys; that is as long as it takes to make the closing batches safe. In a cluster each
leader closes what it leads and notes the ends in the plan; the last one makes the transaction. Nothing is kept on this
node that is not in the store or in a log, so a crash at any moment leaves a plan that `finish_left` takes up.
Called by the service and the node. Read `_step` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from streamkit.broker.shard_server import ShardServer
from streamkit.broker.streams import Streams
from streamkit.errors import NotFound, StreamBusy, StreamkitError
from streamkit.metadata import reshard
from streamkit.metadata.reshard import Plan, ReshardEntry
from streamkit.metadata.reshardings import Reshardings
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription, StreamStatus, check_stream_name
from streamkit.protocol.closing import ChildRange, Closing, encode_closing
from streamkit.runtime.interfaces import Clock

logger = logging.getLogger("streamkit.broker")

_ANSWER_SECONDS = 20.0             # how long a request waits for its plan
_RETRY_FIRST_SECONDS = 0.05
_RETRY_MOST_SECONDS = 2.0
_MAJORITY_STEP_SECONDS = 0.005
_HOUR_MS = 3_600_000
_WAIT_MS_MAX = 1_000               # for news of an operation: a node that stops waits for those who wait
_FAILED_MAX = 64                   # operations whose failure is remembered for whoever asks


@dataclass(frozen=True, slots=True)
class Asked:
    """operation: names what is under way; "": nothing is, the stream is as it was asked for."""

    stream: StreamDescription
    operation: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """status: "running", "done" or "failed"; error: why. done: of `total` steps."""

    status: str
    done: int
    total: int
    error: StreamkitError | None = None


class Reshards:
    """changed: called with a stream's name once its new map is served here."""

    def __init__(
        self, streams: Streams, records: Reshardings, clock: Clock, *, changed: Callable[[str], None] | None = None
    ) -> None:
        self._streams = streams
        self._records = records
        self._clock = clock
        self._changed = changed
        self._alone = records.alone
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}    # by plan
        self._errors: dict[str, StreamkitError] = {}           # of plans that are being given up
        self._corrections: set[asyncio.Task[None]] = set()
        self._again: set[str] = set()                          # asked for while they were at work
        self._watchers: dict[str, set[asyncio.Future[None]]] = {}
        self._failed: dict[str, StreamkitError] = {}           # operations that were given up, the latest last
        records.on_change.append(self._noted)

    # -- requests ------------------------------------------------------------------------------------------

    async def split(self, name: str, ordinal: int, at: int | None = None, *, wait: bool = True) -> Asked:
        """The stream afterwards, or what is under way. Raises ShardNotFound, ShardClosed, InvalidRequest, and more:

        StreamNotFound, StreamBusy, LimitReached, DiskFull, CannotPlace, StoreUnavailable.
        """
        return await self._reshard(name, lambda stream: reshard.split(stream, ordinal, at), wait)

    async def merge(self, name: str, ordinals: Collection[int], *, wait: bool = True) -> Asked:
        """The same; they are neighbours."""
        return await self._reshard(name, lambda stream: reshard.merge(stream, ordinals), wait)

    async def scale(self, name: str, count: int, *, wait: bool = True) -> Asked:
        """The same; nothing happens when the open shards are `count` of nearly equal ranges already."""
        return await self._reshard(name, lambda stream: reshard.scale(stream, count), wait)

    async def _reshard(
        self, name: str, make_plan: Callable[[StreamDescription], Plan | None], wait: bool
    ) -> Asked:
        # Raises StreamNotFound, StreamBusy, LimitReached, DiskFull, CannotPlace, StoreUnavailable.
        check_stream_name(name)
        self._streams.stream(name)
        entry = await self._records.begin(name, make_plan)
        if entry is not None:
            logger.info("stream.reshard_began", extra={"facts": {
                "stream": name, "plan": entry.id, "parents": len(entry.parents), "children": len(entry.children),
            }})  # fmt: skip
            if wait:
                await self._finished(entry)
            else:
                self._start(name)
        stream = self._streams.catalog.located(self._streams.stream(name))
        return Asked(stream, _operation(entry) if entry is not None and not wait else "")

    async def _finished(self, entry: ReshardEntry) -> None:
        done = self._waiting[entry.id] = asyncio.get_running_loop().create_future()
        self._start(entry.stream)
        try:
            await asyncio.wait_for(done, _ANSWER_SECONDS)
        except TimeoutError:
            raise StreamBusy(
                f'stream "{entry.stream}" is still being resharded; that goes on by itself',
                try_=f"streamkit stream describe {entry.stream}", stream=entry.stream, status="being resharded",
            ) from None
        finally:
            self._waiting.pop(entry.id, None)

    async def progress(self, name: str, operation: str, wait_ms: int) -> Progress:
        """How far it is, told when that changes or after wait_ms. Raises StreamNotFound, NotFound, StoreUnavailable.

        Whatever node began with it: the plan says how far, the stream's map that it is done.
        """
        check_stream_name(name)
        entry = self._records.entries.get(name)
        if entry is not None and _operation(entry) == operation:
            await self._changed_within(name, wait_ms)
        for looked in (False, True):
            entry = self._records.entries.get(name)
            if entry is not None and _operation(entry) == operation:
                # The last step is the transaction.
                return Progress("running", sum(p.end is not None for p in entry.parents), len(entry.parents) + 1)
            if operation in self._failed:
                return Progress("failed", 0, 1, self._failed[operation])
            if any(shard.uuid.hex() == operation for shard in self._streams.stream(name).shards):
                return Progress("done", 1, 1)
            if not looked:                             # this node may not have heard of it, or of its end
                await self._records.look(name)
        raise NotFound(
            f'nobody knows that change of stream "{name}": it was given up, or is long done',
            try_=f"streamkit stream describe {name}", stream=name, operation=operation[:80],
        )

    async def _changed_within(self, name: str, wait_ms: int) -> None:
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(name, set()).add(watcher)
        try:
            await asyncio.wait([watcher], timeout=min(wait_ms, _WAIT_MS_MAX) / 1000)
        finally:
            watchers = self._watchers[name]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[name]

    # -- what others began ---------------------------------------------------------------------------------

    def finish_left(self, shards: Collection[bytes] | None = None) -> None:
        """Take up plans that are under way; shards: only those that close one of these, because they are led here now.

        Returns at once. Called when a node starts, and in a cluster whenever it begins to lead.
        """
        led = None if shards is None else {uuid.hex() for uuid in shards}
        for name, entry in list(self._records.entries.items()):
            if led is None or any(parent.uuid in led for parent in entry.parents):
                self._start(name)

    def stream_changed(self, name: str, stream: StreamDescription | None) -> None:
        """With a stream its plan goes, too: once no parent has a leader, nobody else would look at it."""
        if stream is None and name in self._records.entries:
            self._start(name)

    def led(self, served: ShardServer) -> None:
        """This node begins to lead the shard.

        A log whose closing batch was lost with its last leader, as streams that do not wait for a majority allow, is
        closed again before anybody can put to it, and the map learns where it ends now.
        """
        self.finish_left((served.shard.uuid,))
        shard = served.shard
        if shard.closed_ms is not None and (served.log.closing is None or served.log.closing_end != shard.end):
            name = served.stream_name
            try:
                served.close_with(encode_closing(Closing(
                    stream=name, ordinal=shard.ordinal, plan="", children=self._ranges(name, shard)
                )), self._clock.now_ms())  # fmt: skip
            except StreamkitError as error:
                logger.error("shard.not_closed", extra={"facts": {"shard": shard.id, "error": str(error)}})
                return
            task = asyncio.get_running_loop().create_task(self._correct(served))
            self._corrections.add(task)
            task.add_done_callback(self._corrections.discard)

    def _ranges(self, name: str, shard: Shard) -> tuple[ChildRange, ...]:
        stream = self._streams.catalog.streams.get(name)
        return tuple(
            ChildRange(child.uuid.hex(), child.ordinal, str(child.hash_start), str(child.hash_end))
            for child in (stream.shards if stream is not None else ()) if child.ordinal in shard.children
        )

    async def _correct(self, served: ShardServer) -> None:
        try:
            await self._records.correct_end(served.stream_name, served.shard.ordinal, await self._closed(served))
        except StreamkitError as error:                # whoever leads the shard next tries again
            logger.warning("shard.end_uncorrected", extra={"facts": {"shard": served.shard.id, "error": str(error)}})

    async def settled(self) -> None:
        """No plan is at work here; for a node that starts, and for tests."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def close(self) -> None:
        tasks = [*self._tasks.values(), *self._corrections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _noted(self, name: str, entry: ReshardEntry | None) -> None:
        """The store says something of a plan; in a cluster it may be another node's."""
        for watcher in self._watchers.get(name, ()):
            if not watcher.done():
                watcher.set_result(None)
        if entry is not None:
            if not self._alone:
                self._start(name)
            return
        under_way = {each.id for each in self._records.entries.values()}
        for plan, done in self._waiting.items():
            if plan in under_way or done.done():
                continue
            if (error := self._errors.pop(plan, None)) is not None:
                done.set_exception(error)
            else:
                done.set_result(None)

    # -- carrying out --------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        if name in self._tasks:
            self._again.add(name)
            return
        task = self._tasks[name] = asyncio.get_running_loop().create_task(self._work(name))
        task.add_done_callback(lambda _: self._ended(name, task))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            logger.error("stream.reshard_broke", exc_info=error, extra={"facts": {"stream": name}})
        elif name in self._again:
            self._again.discard(name)
            if name in self._records.entries:
                self._start(name)

    async def _work(self, name: str) -> None:
        """Until the plan is gone, or others have to go on with it."""
        pause = _RETRY_FIRST_SECONDS
        while (entry := self._records.entries.get(name)) is not None:
            self._again.discard(name)
            try:
                await self._step(name, entry)
                return
            except StreamkitError as error:
                logger.warning("stream.reshard_waits", extra={"facts": {"stream": name, "error": str(error)}})
                if await self._give_up(name, entry, error):
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MOST_SECONDS)

    async def _step(self, name: str, entry: ReshardEntry) -> None:
        """All that this node can do for the plan now. Raises what it may be tried again after."""
        stream = self._streams.catalog.streams.get(name)
        if stream is None or not reshard.fits(stream, entry):
            if not await self._records.discard_dead(name):
                raise _busy(name)                      # this node knows an older map
            await self._drop_children(entry)
            return
        if stream.status is not StreamStatus.ACTIVE:
            raise _busy(name)                          # about to be deleted: then the plan goes, too
        await self._records.make_children(entry)
        if self._alone:
            directory = self._streams.directory
            uuids = [bytes.fromhex(child.uuid) for child in entry.children]
            await directory.create_shards([uuid for uuid in uuids if uuid not in directory.shards])
        led = {
            parent.ordinal: served for parent in entry.parents
            if parent.end is None and (served := self._streams.shards.get(bytes.fromhex(parent.uuid))) is not None
        }
        if self._alone and len(led) < len(entry.parents):
            raise _busy(name)                          # dropped a moment ago, while the children were made
        found = await asyncio.gather(
            *(self._close(served, entry, ordinal) for ordinal, served in led.items()), return_exceptions=True
        )
        ends = {ordinal: end for ordinal, end in zip(led, found, strict=True) if isinstance(end, int)}
        if ends and (after := await self._records.note_ends(name, ends)) is not None:
            self._opened(after, entry)
        for error in found:
            if isinstance(error, BaseException):
                raise error

    async def _close(self, served: ShardServer, entry: ReshardEntry, ordinal: int) -> int:
        payload = encode_closing(Closing(
            stream=entry.stream, ordinal=ordinal, plan=entry.id,
            children=tuple(
                ChildRange(child.uuid, child.ordinal, child.hash_start, child.hash_end)
                for child in entry.children_of(ordinal)
            ),
        ))  # fmt: skip
        served.close_with(payload, self._clock.now_ms())
        return await self._closed(served)

    async def _closed(self, served: ShardServer) -> int:
        end = await served.closed()
        # Whatever the stream's level: the end is about to be written where it outlives a loss of power.
        await self._streams.directory.sync(served.log, end)
        while self._streams.shards.get(served.shard.uuid) is served:
            if served.is_held_widely(end):
                return end
            await asyncio.sleep(_MAJORITY_STEP_SECONDS)
        raise _busy(served.stream_name)                # led elsewhere by now, perhaps with a shorter log

    def _opened(self, stream: StreamDescription, entry: ReshardEntry) -> None:
        if self._alone:
            self._streams.serve_stream(stream)
        logger.info("stream.resharded", extra={"facts": {
            "stream": stream.name, "plan": entry.id, "map_version": stream.map_version, "shards": stream.config.shards,
        }})  # fmt: skip
        if self._changed is not None:
            self._changed(stream.name)

    async def _give_up(self, name: str, entry: ReshardEntry, error: StreamkitError) -> bool:
        """Whether the plan could be dropped: here no other node has part in it, and none of its shards is closed."""
        logs = self._streams.directory.shards
        parents = [logs.get(bytes.fromhex(parent.uuid)) for parent in entry.parents]
        if not self._alone or any(log is None or log.closing is not None for log in parents):
            return False
        self._errors[entry.id] = error                 # whoever waits is told why, and not that it is done
        self._failed[_operation(entry)] = error
        while len(self._failed) > _FAILED_MAX:
            del self._failed[next(iter(self._failed))]
        try:
            await self._records.abandon(name)
        except StreamkitError as cause:
            self._failed.pop(_operation(entry), None)
            logger.warning("stream.reshard_left_behind", extra={"facts": {"stream": name, "error": str(cause)}})
            return False
        finally:
            self._errors.pop(entry.id, None)
        await self._drop_children(entry)
        return True

    async def _drop_children(self, entry: ReshardEntry) -> None:
        """Logs that were made for children and never held anything."""
        directory = self._streams.directory
        made = [bytes.fromhex(child.uuid) for child in entry.children]
        unused = [uuid for uuid in made if uuid in directory.shards and uuid not in self._streams.shards]
        if self._alone and unused:
            await directory.drop_shards(unused)

    # -- closed shards that are empty by now ---------------------------------------------------------------

    async def forget_expired(self, now_ms: int) -> int:
        """Closed shards whose every record is older than the retention leave the map; how many did."""
        count = 0
        for stream in list(self._streams.catalog.streams.values()):
            retention_ms = stream.config.retention_hours * _HOUR_MS
            old = [
                shard for shard in reshard.expired(stream, now_ms, retention_ms)
                if (served := self._streams.shards.get(shard.uuid)) is not None
                and served.log.last_append_ms + retention_ms < now_ms
            ]
            if not old or stream.status is not StreamStatus.ACTIVE or stream.name in self._records.entries:
                continue
            after = await self._records.forget_shards(stream.name, old)
            left = {shard.uuid for shard in after.shards}
            gone = [shard for shard in old if shard.uuid not in left]
            logger.info("shards.expired", extra={"facts": {"stream": stream.name, "count": len(gone)}})
            if self._alone:
                await self._streams.drop_shards(gone)
            if self._changed is not None:
                self._changed(stream.name)
            count += len(gone)
        return count


def _operation(entry: ReshardEntry) -> str:
    # A child tells by being in the stream's map that the plan was carried out.
    return entry.children[0].uuid


def _busy(name: str) -> StreamBusy:
    return StreamBusy(
        f'stream "{name}" is being changed', try_="try again in a moment", stream=name, status="changing"
    )
