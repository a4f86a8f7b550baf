"""Producer and AsyncProducer: put records without waiting, learn what became of them when you ask.

    with Producer("orders") as producer:
        producer.put({"id": 1, "total": 42.5}, key="customer-7")

Producer may be shared by threads; its sender runs on the process's background event loop. AsyncProducer belongs to
one event loop and sends from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

from streamkit._core.outcome import ColumnsHandle, PutHandle
from streamkit.client.client import AsyncClient
from streamkit.client.pool import Connector
from streamkit.errors import InvalidRequest, InvalidUse, StreamkitError
from streamkit.model.codec import Codec
from streamkit.model.entry import Headers
from streamkit.model.fate import Fate
from streamkit.observability.producer_numbers import ProducerNumbers
from streamkit.producer import stats
from streamkit.producer.bulk import BulkPut
from streamkit.producer.config import ProducerConfig
from streamkit.producer.entry import PutEntry, PutResult
from streamkit.producer.outbox import Outbox, Target, closed, closed_in_child
from streamkit.producer.progress import Numbered, check_number
from streamkit.producer.transaction import TIMEOUT_S, AsyncTransactionBlock, TransactionBlock
from streamkit.runtime import fork
from streamkit.runtime.latch import Latch
from streamkit.runtime.real import LoopThread

if TYPE_CHECKING:
    from streamkit.producer.settings import ProducerSettings

_log = logging.getLogger("streamkit.producer")

Compression = Literal["none", "lz4", "zstd"]
Handle = PutHandle[PutResult]

_inherited: dict[str, int] = {}            # names whose producers were open when this process was forked: parent's id


class _Base:
    """State and settings that both faces share."""

    def __init__(
        self,
        stream: str | None = None,
        *,
        url: str | Connector | None = None,
        client: AsyncClient | None = None,
        codec: Codec | str = "json",
        compression: Compression = "lz4",
        linger_ms: float = 20,
        batch_bytes_max: int = 524_288,
        buffer_bytes_max: int = 67_108_864,
        on_full: Literal["wait", "raise", "drop_new"] = "wait",
        max_block_ms: int = 30_000,
        shard_share: float = 0.5,
        on_pressure: Callable[[bool], object] | None = None,
        on_error: Callable[[StreamkitError, int], object] | None = None,
        delivery_timeout_ms: int = 120_000,
        request_timeout_ms: int = 10_000,
        fail_if_throttled: bool = False,
        idempotent: bool = True,
        name: str | None = None,
        on_failure: Literal["continue", "halt_key", "halt"] = "continue",
    ) -> None:
        self.stream = stream
        self.name = name
        self._state: Literal["open", "closed", "inherited"] = "closed"     # until everything below succeeded
        config = ProducerConfig(
            compression=compression,
            linger_ms=linger_ms,
            batch_bytes_max=batch_bytes_max,
            buffer_bytes_max=buffer_bytes_max,
            on_full=on_full,
            max_block_ms=max_block_ms,
            shard_share=shard_share,
            fail_if_throttled=fail_if_throttled,
            request_timeout_ms=request_timeout_ms,
            delivery_timeout_ms=delivery_timeout_ms,
            idempotent=idempotent,
            name=name,
            on_failure=on_failure,
        )
        if name is not None and _inherited.get(name) == fork.parent_id():
            raise closed_in_child(name)
        self._outbox = Outbox(client or AsyncClient(url), client is None, codec, config, on_pressure, on_error)
        self._default: Target | None = None          # of `stream`, while puts are allowed
        self._state = "open"
        fork.watch_fork(self)

    def stats(self) -> dict[str, Any]:
        """Counts and histograms since the producer was made, and what it holds now, also for each shard.

        Times in seconds unless their name says ms; a histogram is {count, mean, p50, p90, p99, p99.9}.
        """
        return stats.snapshot(self._outbox)

    def numbers(self) -> list[ProducerNumbers]:
        """The same for each stream, for observability.producer_metrics.ProducerCollector."""
        return stats.numbers(self._outbox)

    def prometheus(self) -> bytes:
        """The same as Prometheus text, for whatever serves /metrics in this process."""
        from streamkit.observability.producer_metrics import exposition  # its package takes 30 ms to load

        return exposition(self.numbers)

    def before_fork(self) -> None:
        self._outbox.before_fork()

    def after_fork(self, in_child: bool) -> None:
        self._outbox.after_fork(in_child)
        if in_child:
            self._state = "inherited"
            self._default = None
            if self.name is not None:
                _inherited[self.name] = fork.parent_id()

    def _check_open(self) -> None:
        if self._state == "inherited":
            raise closed_in_child(self.name)
        if self._state == "closed":
            raise closed()

    def _name(self, stream: str | None) -> str:
        self._check_open()
        name = stream or self.stream
        if name is None:
            raise InvalidUse("no stream was named", try_="Producer(stream) or put(…, stream=…)", argument="stream")
        return name

    def _begin_close(self) -> bool:
        # True when there is something left to do.
        was, self._default = self._state, None
        if was == "open":
            self._state = "closed"
        fork.forget(self)
        return was == "open"

    def _warn_open(self, lost: int) -> None:
        warnings.warn(
            f"a producer was not closed: {lost} records were not acknowledged; use `with`, or call close()",
            ResourceWarning, stacklevel=3, source=self,
        )  # fmt: skip


class Producer(_Base):
    """Puts records into streams from any thread.

    stream: where put() goes when it names none. url: as Client's; client: an AsyncClient on `loop_thread` instead,
    which stays open. codec: "json" (bytes go as they are), "msgpack", "text", "bytes" or a Codec. linger_ms: longest a
    record waits for company while earlier batches travel; an idle producer sends at once. idempotent: a retry is never
    stored twice. name: there is one producer of a name at a time, cluster-wide. Whoever opens it again shuts the former
    one out of each stream with its first put there: nothing more of that one is stored, it gets ProducerFenced.
    on_failure: what becomes of records behind one that failed: they go on ("continue"), those of the same key fail with
    KeyHalted until resume_key(key) ("halt_key"), or all do until resume_key() ("halt"). Connects with the first put.

    on_full: a put that finds no room waits max_block_ms and then raises BufferFull ("wait"), raises at once ("raise"),
    or gives a handle that has failed with BufferFull ("drop_new": counted in stats, logged, not raised by flush).
    shard_share: of the buffer, the most that one shard may hold while there are others, so that one that is stuck
    leaves room for them. on_pressure: called with True when 80 % of the buffer is in use and with False when 50 % is
    again. on_error: called with an error and the number of records that failed with it and whose handle nobody holds;
    flush does not raise these. Both are called on the producer's event loop. fail_if_throttled: a record that the
    broker throttles fails with Throttled instead of waiting.
    """

    def __init__(
        self, stream: str | None = None, *, loop_thread: LoopThread | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        self._thread = loop_thread or LoopThread.shared()
        super().__init__(stream, **settings)
        fork.watch_exit(self)

    def put(
        self,
        value: object,
        *,
        key: str | None = None,
        stream: str | None = None,
        headers: Headers | None = None,
        time: datetime | None = None,
        explicit_hash_key: int | None = None,
        app_seq: int | None = None,
        channel: str = "",
    ) -> Handle:
        """Take one record; waits only for room in the buffer. Records of one key are stored in the order of put.

        key: None when order does not matter: the shard that has the least to do gets the record.
        time: event time, aware. explicit_hash_key: takes the place of MD5(key) in choosing the shard.
        app_seq: for a named producer, the record's number in its `channel`, 0..2**64-1, growing there, such as a file's
        line numbers. What has that number already, from an earlier instance too, is not stored again. A number whose
        record failed may be put again. See last_app_seq.
        Raises RecordTooLarge, InvalidRequest (key, headers, time), InvalidUse, BufferFull (on_full="raise"), Closed;
        with the first put also StreamNotFound and ConnectionFailed.
        """
        target = self._default
        if target is None or stream is not None:
            target = self._target(stream)
        if headers is None and time is None and explicit_hash_key is None and app_seq is None:
            handle = target.put(key, target.encode(value), target.headers)
            if handle is not None:
                return handle
        elif app_seq is not None:
            return self._put_numbered(target, app_seq, channel, (value, key, headers, time, explicit_hash_key))
        return self._put_waiting(target, target.arguments(value, key, headers, time, explicit_hash_key))

    def put_many(self, entries: Iterable[PutEntry], *, stream: str | None = None) -> list[Handle]:
        """put() for each entry, in order. What put() would refuse fails in its own handle; the others are stored."""
        handles: list[Handle] = []
        for e in entries:
            try:
                handles.append(self.put(
                    e.value, key=e.key, stream=stream, headers=e.headers, time=e.time,
                    explicit_hash_key=e.explicit_hash_key, app_seq=e.app_seq, channel=e.channel,
                ))  # fmt: skip
            except InvalidRequest as error:
                handles.append(self._outbox.refuse(error))
        return handles

    def put_and_wait(
        self,
        value: object,
        *,
        key: str | None = None,
        stream: str | None = None,
        headers: Headers | None = None,
        time: datetime | None = None,
        explicit_hash_key: int | None = None,
        app_seq: int | None = None,
        channel: str = "",
    ) -> PutResult:
        """put(), then the acknowledgement. Raises what failed the record."""
        return self.put(
            value, key=key, stream=stream, headers=headers, time=time, explicit_hash_key=explicit_hash_key,
            app_seq=app_seq, channel=channel,
        ).result()  # fmt: skip

    def put_columns(self, keys: Any, values: Any, *, stream: str | None = None) -> ColumnsHandle:
        """Take a column of keys and one of values without a Python object a record; values go as they are.

        keys, values: Arrow binary or string arrays, or pairs (offsets, bytes); keys may be None. A row that can never
        be stored fails alone. With on_full="raise" or "drop_new" the rows that found no room fail with BufferFull.
        Returns when all are taken.
        """
        with BulkPut(self._outbox, self._target(stream), keys, values) as bulk:
            since_ms = None
            while not bulk.take():
                since_ms = self._outbox.began_waiting() if since_ms is None else since_ms
                latch = Latch()
                self._outbox.room.when_freed(latch.set)
                before = bulk.handle.taken
                if not bulk.take():                  # room may have come before the latch was there
                    self._wait(latch, since_ms)
                if bulk.handle.taken > before:
                    since_ms = None                  # the time counts anew for each row
                self._check_open()
        return bulk.handle

    def last_app_seq(self, channel: str = "", *, stream: str | None = None) -> int | None:
        """The number up to which everything that was put in the channel is stored, also by earlier instances.

        Go on with the number behind it, the same records under the same numbers: of those that were on their way when
        an earlier instance ended, some are stored, and are not stored again. None: go on with the first. A record that
        failed holds the number back until it is put again. Raises InvalidUse for a producer without a name.
        """
        target = self._target(stream)
        if target.resumption is None:
            self._thread.run(self._outbox.resume(target))
        assert target.resumption is not None, "it has begun"
        return target.resumption.progress.settled(channel)

    def transaction(self, timeout_s: float = TIMEOUT_S) -> TransactionBlock:
        """`with producer.transaction() as tx`: what the block puts with `tx.put` is stored at its end, all or nothing.

        The block's end raises TransactionAborted (nothing is stored: the time was over, or a newer producer of the name
        came, ProducerFenced), TransactionTooLarge, LeaseLost (with commit_positions), OutcomeUnknown. An exception
        inside the block aborts. timeout_s: from the beginning of the block until it is decided. One at a time; a
        second one waits. Apart from `put`: neither order nor flush connects the two.
        """
        self._check_open()
        return TransactionBlock(self._outbox.transaction_block(self.stream, timeout_s), self._run)

    def resume_key(self, key: str | None = None, *, stream: str | None = None) -> None:
        """Records of a key that was halted may be put again; None: of every key. stream: None: in every stream."""
        self._check_open()
        self._thread.run(self._outbox.resume_key(key, stream))

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything put before has an outcome.

        Raises PutFailed with every failure nobody looked at, TimedOut when some records are still on their way.
        """
        self._check_open()
        self._thread.run(self._outbox.flush(timeout_s))

    def start_flush(self, stream: str | None = None) -> None:
        """Send what waits for company now, of one stream or of all; returns at once."""
        self._check_open()
        self._thread.call(self._outbox.push, stream)

    def resolve(self, token: str) -> Fate:
        """What became of a record whose put failed with OutcomeUnknown; token: of the error's facts.

        "stored" with its sequence number, "not_stored" now and for good, or "forgotten". As Client.resolve: any process
        may ask. Raises InvalidRequest, and while the broker cannot be reached ConnectionFailed or TimedOut.
        """
        self._check_open()
        return self._thread.run(self._outbox.resolve(token))

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush, then end; records not acknowledged by then fail. Raises PutFailed. Safe to call twice.

        Those that were sent and not answered are cancelled first, for at most another `timeout_s` or 10 s: each fails
        with Closed, whose facts say whether it may be stored (`sent`), and then how to ask (`token`).
        """
        if self._begin_close() and self._thread.alive:
            self._thread.run(self._outbox.close(timeout_s))

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StreamkitError as failure:
            if error is None:
                raise
            _log.warning("producer.close_failed code=%s error=%s", failure.code, failure)

    def __del__(self) -> None:
        if getattr(self, "_state", "closed") == "open":
            lost = self._outbox.outstanding()
            if self._begin_close() and self._thread.alive:
                self._thread.call(_close_later, self._outbox)
            self._warn_open(lost)

    def at_exit(self) -> None:
        """Called when the interpreter ends with the producer open: a bounded flush."""
        if self._state == "open":
            with contextlib.suppress(StreamkitError):
                self.flush(self._outbox.config.exit_flush_ms / 1000)
            lost = self._outbox.outstanding()
            with contextlib.suppress(StreamkitError):
                self.close(0)
            self._warn_open(lost)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._thread.run(work)

    def _target(self, stream: str | None) -> Target:
        name = self._name(stream)
        target = self._outbox.targets.get(name) or self._thread.run(self._outbox.target(name))
        if name == self.stream:
            self._default = target
        return target

    def _put_numbered(
        self, target: Target, app_seq: int, channel: str, what: tuple[object, str | None, Any, Any, int | None]
    ) -> Handle:
        check_number(channel, app_seq)
        if target.resumption is None:
            self._thread.run(self._outbox.resume(target))
        assert target.resumption is not None, "it has begun"
        with Numbered(target.resumption.progress, channel, app_seq) as numbered:
            if numbered.handle is None:
                numbered.handle = self._put_waiting(target, target.arguments(*what, numbered.header))
        return numbered.handle

    def _put_waiting(
        self, target: Target, arguments: tuple[str | None, bytes, bytes, int | None, bytes | None]
    ) -> Handle:
        handle = target.put(*arguments) or self._outbox.full(*arguments)
        if handle is not None:
            return handle
        since_ms = self._outbox.began_waiting()
        while True:
            latch = Latch()
            self._outbox.room.when_freed(latch.set)
            if (handle := target.put(*arguments)) is not None:     # room may have come before the latch was there
                self._outbox.found_room(since_ms)
                return handle
            self._wait(latch, since_ms)
            self._check_open()

    def _wait(self, latch: Latch, since_ms: int) -> None:
        if asyncio._get_running_loop() is self._outbox.loop:
            raise InvalidUse("waiting for room here would stop the event loop that makes room",
                             try_="use AsyncProducer there")  # fmt: skip
        latch.wait(self._outbox.waited(since_ms))


class AsyncProducer(_Base):
    """Producer for coroutines of one event loop: `await put(…)` waits for room, `await handle` for the acknowledgement.

    Settings are Producer's.
    """

    async def put(
        self,
        value: object,
        *,
        key: str | None = None,
        stream: str | None = None,
        headers: Headers | None = None,
        time: datetime | None = None,
        explicit_hash_key: int | None = None,
        app_seq: int | None = None,
        channel: str = "",
    ) -> Handle:
        """As Producer.put."""
        target = self._default
        if target is None or stream is not None:
            target = await self._target(stream)
        if headers is None and time is None and explicit_hash_key is None and app_seq is None:
            handle = target.put(key, target.encode(value), target.headers)
            if handle is not None:
                return handle
        elif app_seq is not None:
            return await self._put_numbered(target, app_seq, channel, (value, key, headers, time, explicit_hash_key))
        return await self._put_waiting(target, target.arguments(value, key, headers, time, explicit_hash_key))

    async def _put_numbered(
        self, target: Target, app_seq: int, channel: str, what: tuple[object, str | None, Any, Any, int | None]
    ) -> Handle:
        check_number(channel, app_seq)
        if target.resumption is None:
            await self._outbox.resume(target)
        assert target.resumption is not None, "it has begun"
        with Numbered(target.resumption.progress, channel, app_seq) as numbered:
            if numbered.handle is None:
                numbered.handle = await self._put_waiting(target, target.arguments(*what, numbered.header))
        return numbered.handle

    async def _put_waiting(
        self, target: Target, arguments: tuple[str | None, bytes, bytes, int | None, bytes | None]
    ) -> Handle:
        handle = target.put(*arguments) or self._outbox.full(*arguments)
        if handle is not None:
            return handle
        since_ms = self._outbox.began_waiting()
        while (handle := target.put(*arguments)) is None:
            await self._freed(since_ms)
            self._check_open()
        self._outbox.found_room(since_ms)
        return handle

    async def put_many(self, entries: Iterable[PutEntry], *, stream: str | None = None) -> list[Handle]:
        """put() for each entry, in order. What put() would refuse fails in its own handle; the others are stored."""
        handles: list[Handle] = []
        for e in entries:
            try:
                handles.append(await self.put(
                    e.value, key=e.key, stream=stream, headers=e.headers, time=e.time,
                    explicit_hash_key=e.explicit_hash_key, app_seq=e.app_seq, channel=e.channel,
                ))  # fmt: skip
            except InvalidRequest as error:
                handles.append(self._outbox.refuse(error))
        return handles

    async def put_and_wait(
        self,
        value: object,
        *,
        key: str | None = None,
        stream: str | None = None,
        headers: Headers | None = None,
        time: datetime | None = None,
        explicit_hash_key: int | None = None,
        app_seq: int | None = None,
        channel: str = "",
    ) -> PutResult:
        """put(), then the acknowledgement. Raises what failed the record."""
        return await (
            await self.put(
                value, key=key, stream=stream, headers=headers, time=time, explicit_hash_key=explicit_hash_key,
                app_seq=app_seq, channel=channel,
            )
        )  # fmt: skip

    def transaction(self, timeout_s: float = TIMEOUT_S) -> AsyncTransactionBlock:
        """`async with producer.transaction() as tx`: as Producer.transaction."""
        self._check_open()
        return self._outbox.transaction_block(self.stream, timeout_s)

    async def put_columns(self, keys: Any, values: Any, *, stream: str | None = None) -> ColumnsHandle:
        """As Producer.put_columns."""
        with BulkPut(self._outbox, await self._target(stream), keys, values) as bulk:
            since_ms, before = None, 0
            while not bulk.take():
                if since_ms is None or bulk.handle.taken > before:
                    since_ms, before = self._outbox.began_waiting(), bulk.handle.taken
                await self._freed(since_ms)
                self._check_open()
        return bulk.handle

    async def last_app_seq(self, channel: str = "", *, stream: str | None = None) -> int | None:
        """As Producer.last_app_seq."""
        target = await self._target(stream)
        if target.resumption is None:
            await self._outbox.resume(target)
        assert target.resumption is not None, "it has begun"
        return target.resumption.progress.settled(channel)

    async def resume_key(self, key: str | None = None, *, stream: str | None = None) -> None:
        """As Producer.resume_key."""
        self._check_open()
        await self._outbox.resume_key(key, stream)

    async def flush(self, timeout_s: float | None = None) -> None:
        """As Producer.flush."""
        self._check_open()
        await self._outbox.flush(timeout_s)

    async def resolve(self, token: str) -> Fate:
        """As Producer.resolve."""
        self._check_open()
        return await self._outbox.resolve(token)

    async def close(self, timeout_s: float = 30.0) -> None:
        """As Producer.close."""
        if self._begin_close():
            await self._outbox.close(timeout_s)

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except StreamkitError as failure:
            if error is None:
                raise
            _log.warning("producer.close_failed code=%s error=%s", failure.code, failure)

    def __del__(self) -> None:
        if getattr(self, "_state", "closed") == "open":
            lost, loop = self._outbox.outstanding(), self._outbox.loop
            if self._begin_close() and loop is not None and loop.is_running():
                loop.call_soon_threadsafe(_close_later, self._outbox)
            self._warn_open(lost)

    async def _target(self, stream: str | None) -> Target:
        name = self._name(stream)
        target = self._outbox.targets.get(name) or await self._outbox.target(name)
        if name == self.stream:
            self._default = target
        return target

    async def _freed(self, since_ms: int) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._outbox.room.when_freed(partial(_complete, future))
        too_late = loop.call_later(self._outbox.waited(since_ms), partial(_complete, future))
        try:
            await future
        finally:
            too_late.cancel()


_closing: set[asyncio.Task[None]] = set()            # asyncio itself keeps weak references only


def _close_later(outbox: Outbox) -> None:
    # For a producer that was collected while open, on the event loop: send what is left, within bounds.
    async def close() -> None:
        with contextlib.suppress(StreamkitError):    # nobody is left to tell; the sender logged each failed batch
            await outbox.close(outbox.config.exit_flush_ms / 1000)

    task = asyncio.get_running_loop().create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
