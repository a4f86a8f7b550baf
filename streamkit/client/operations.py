"""Changes that take a while: brokers carry them out, a client follows how far they are.

    begin ──▶ accepted: a node's failure does not prevent it any more ──▶ progress … ──▶ done, or failed and undone

Whoever began may go away: the change goes on, and `AsyncClient.operation(id)` follows it again, from any process.
Called by `client`; `sync` wraps it. Read `AsyncOperation._follow`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from streamkit.errors import (
    Closed,
    InvalidRequest,
    InvalidUse,
    ProtocolMismatch,
    StreamBusy,
    TimedOut,
    Unavailable,
)
from streamkit.model.shard import shard_id, shard_ordinal
from streamkit.model.stream import StreamDescription
from streamkit.protocol import messages as m
from streamkit.protocol.conversion import failure_from_wire, split_to_wire, stream_from_wire

if TYPE_CHECKING:
    from streamkit.client.client import AsyncClient

T = TypeVar("T")
Status = Literal["running", "done", "failed"]
SplitAt = int | Literal["middle", "traffic"]

_WAIT_MS = 1_000                   # for news, in one request
_PAUSE_FIRST_S = 0.02              # between two tries while the stream is busy, or nobody answers …
_PAUSE_MOST_S = 0.5                # … doubling up to this
_HEAVY_KEY = 0.5                   # share of a shard's bytes from which on one key is worth a word


@dataclass(frozen=True, slots=True)
class Begun:
    """operation: as brokers name it; "": there is nothing to follow, `stream` is what came of it."""

    name: str
    stream: StreamDescription | None
    operation: str = ""
    note: str = ""


class AsyncOperation:
    """A change of a stream's shards that is under way; `await` it for the stream afterwards.

    id: for `AsyncClient.operation`; "" until brokers have accepted it, and when there was nothing to do. status:
    "running", "done" or "failed". progress: 0.0 to 1.0. note: what is worth knowing about how it was carried out, else
    "". All are kept up to date while the client is open; the change goes on without it.
    """

    def __init__(self, client: AsyncClient, what: str, begin: Coroutine[Any, Any, Begun]) -> None:
        """what: for messages, as "the split of orders"."""
        loop = asyncio.get_running_loop()
        self.id = ""
        self.status: Status = "running"
        self.progress = 0.0
        self.note = ""
        self._what = what
        self._client = client
        self._accepted: asyncio.Future[None] = loop.create_future()
        self._accepted.add_done_callback(_seen)
        self._task = loop.create_task(self._follow(begin), name="client.operation")
        self._task.add_done_callback(self._ended)

    async def accepted(self) -> None:
        """Until brokers will carry it out, whatever becomes of the client. Raises what refused it."""
        await asyncio.shield(self._accepted)

    async def wait(self, timeout_s: float | None = None) -> StreamDescription:
        """The stream afterwards. Raises what refused it or made it fail (the stream is as it was then), TimedOut.

        timeout_s: None waits as long as it takes; after TimedOut the change goes on, and can be waited for again.
        """
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        if not done:
            raise TimedOut(
                f"{self._what} is at {self.progress:.0%} after {timeout_s:g} s; it goes on by itself",
                try_="wait again, or look later: streamkit stream describe", sent=True,
                timeout_ms=int((timeout_s or 0) * 1000), operation=self.id,
            )
        if self._task.cancelled():
            raise Closed(f"the client was closed; {self._what} goes on if brokers had accepted it",
                         try_="streamkit stream describe", what="client", operation=self.id)  # fmt: skip
        return self._task.result()

    def __await__(self) -> Generator[Any, None, StreamDescription]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        return f"<{self._what}: {self.status}, {self.progress:.0%}>"

    def when_ended(self, call: Callable[[AsyncOperation], None]) -> None:
        """Have it called with this operation once nobody follows it any more."""
        self._task.add_done_callback(lambda _: call(self))

    def unfollow(self) -> asyncio.Task[StreamDescription]:
        """The client closes; what ends then."""
        self._task.cancel()
        return self._task

    async def _follow(self, begin: Coroutine[Any, Any, Begun]) -> StreamDescription:
        try:
            begun = await begin
        except BaseException as error:
            if not self._accepted.done():
                self._accepted.set_exception(
                    Closed("the client was closed", what="client")
                    if isinstance(error, asyncio.CancelledError) else error
                )
            raise
        self.note = begun.note
        if begun.operation:
            self.id = f"{begun.name}/{begun.operation}"
        if not self._accepted.done():
            self._accepted.set_result(None)
        if not begun.operation:
            assert begun.stream is not None, "what is not under way is done"
            return begun.stream
        news = m.DescribeOperation(begun.name, begun.operation, _WAIT_MS)
        while (after := await self._look(begun, news)) is None:
            continue                                   # each waits for news
        return after

    async def _look(self, begun: Begun, news: m.DescribeOperation) -> StreamDescription | None:
        """The stream once it is done; None while it is under way."""
        told = await _patiently(self._client, lambda: self._client.call(news), Unavailable, TimedOut)
        if not isinstance(told, m.OperationDescribed):
            raise ProtocolMismatch(f"the broker answers with {type(told).__name__} about an operation", reason="answer")
        self.progress = max(self.progress, min(1.0, told.done / max(1, told.total)))
        if told.status == "failed" and told.failure is not None:
            raise failure_from_wire(told.failure)
        if told.status == "done":
            stream = await self._client.stream(begun.name, refresh=True)
            if any(shard.uuid.hex() == begun.operation for shard in stream.shards):
                return stream
            await asyncio.sleep(_PAUSE_FIRST_S)        # answered by a node that has not heard of it yet
        return None

    def _ended(self, task: asyncio.Task[StreamDescription]) -> None:
        if task.cancelled():
            return
        if task.exception() is None:
            self.status, self.progress = "done", 1.0
        else:
            self.status = "failed"


class Operation:
    """AsyncOperation for callers that are not coroutines; `wait` for the stream afterwards."""

    def __init__(self, operation: AsyncOperation, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._operation = operation
        self._run = run

    @property
    def id(self) -> str:
        """For `Client.operation`; "" when there was nothing to do."""
        return self._operation.id

    @property
    def status(self) -> Status:
        return self._operation.status

    @property
    def progress(self) -> float:
        """0.0 to 1.0."""
        return self._operation.progress

    @property
    def note(self) -> str:
        """What is worth knowing about how it was carried out, or ""."""
        return self._operation.note

    def wait(self, timeout_s: float | None = None) -> StreamDescription:
        """As AsyncOperation's."""
        stream: StreamDescription = self._run(self._operation.wait(timeout_s))
        return stream

    def __repr__(self) -> str:
        return repr(self._operation)


# ---- what is begun -------------------------------------------------------------------------------------------


async def begin_split(client: AsyncClient, name: str, shard: str | int, at: SplitAt) -> Begun:
    ordinal, note = shard_ordinal(shard), ""
    if at == "traffic":
        at, note = await _where_traffic_parts(client, name, ordinal)
    if at != "middle" and (not isinstance(at, int) or isinstance(at, bool)):
        raise InvalidUse(
            f"a shard is not split at {at!r}", try_='at="middle", at="traffic", or the second half\'s first hash key',
            argument="at",
        )
    message = split_to_wire(name, ordinal, None if at == "middle" else at, wait=False)
    return await begin(client, name, message, note)


async def begin(client: AsyncClient, name: str, message: m.Message, note: str = "") -> Begun:
    """Ask for it; behind another change of the same stream it waits its turn, as long as a request may take."""
    answer = await _patiently(
        client, lambda: client.call(message), StreamBusy, unless=lambda e: e.facts.get("status") != "being resharded"
    )
    if not isinstance(answer, m.StreamDescribed):
        raise ProtocolMismatch(f"the broker answers with {type(answer).__name__} to a change", reason="answer")
    return Begun(name, client.remember(stream_from_wire(answer.stream)), answer.operation, note)


async def attach(operation: str) -> Begun:
    """What `AsyncOperation.id` names."""
    name, separator, number = operation.partition("/")
    if not (separator and name and number):
        raise InvalidRequest(f"{operation[:80]!r} is no operation", try_="give the id that an Operation shows",
                             field="id", value=operation[:80])  # fmt: skip
    return Begun(name, None, number)


async def _where_traffic_parts(client: AsyncClient, name: str, ordinal: int) -> tuple[SplitAt, str]:
    """Where to split, and a word on it. Raises InvalidRequest when no split would help."""
    stream = await client.stream(name, refresh=True)
    shard = next((each for each in stream.shards if each.ordinal == ordinal and each.closed_ms is None), None)
    if shard is None:
        return "middle", ""                            # the broker says what is wrong with it
    told = await client.describe_traffic(shard)
    lately = f"the last {told.window_ms // 60_000} minutes"
    if told.at is not None:
        note = f"{told.below:.0%} of the bytes of {lately} lie below it"
        if told.key_share > _HEAVY_KEY:
            note += f"; {told.key_share:.0%} of them have the key {told.key}, and a split cannot spread one key"
        return int.from_bytes(told.at, "big"), note
    if told.key:
        raise InvalidRequest(
            f"a split would not help {shard_id(ordinal)} of {name}: {told.key_share:.0%} of the bytes of {lately} have "
            f"the key {told.key}, and a split cannot spread one key",
            try_=f'put under several keys, as {told.key}/0 and {told.key}/1; or split at="middle" all the same',
            field="at", value="traffic", key=told.key, key_share=told.key_share,
        )
    records = f"{told.records or 'no'} record{'' if told.records == 1 else 's'}"
    return "middle", f"{shard_id(ordinal)} took {records} in {lately}: split in the middle"


async def _patiently(
    client: AsyncClient, ask: Callable[[], Awaitable[T]], *kinds: type[Exception],
    unless: Callable[[Any], bool] = lambda _: False,
) -> T:
    """What is asked for, tried again after errors of these kinds, as long as a request may take."""
    clock, pause = client.runtime.clock, _PAUSE_FIRST_S
    until_ms = clock.monotonic_ms() + client.config.request_timeout_ms
    while True:
        try:
            return await ask()
        except kinds as error:
            if unless(error) or clock.monotonic_ms() >= until_ms:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _PAUSE_MOST_S)


def _seen(future: asyncio.Future[None]) -> None:
    # Whoever waits for the outcome is told there as well.
    if not future.cancelled():
        future.exception()
