"""Channels of Splunk's HTTP event collector: what was sent, which of it is indexed, and when nobody knows any more.

    sent ──ack id──▶ waited for ──polled: true──▶ known (the collector says so once, and forgets it)
                         │
                         └─ the collector knows the channel no more, or counts anew ─▶ unknown, all of them at once

A channel is one connection with its cookies, so that polls reach the node that took the data, and does one thing at a
time, so that ids only grow.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from streamkit.delivery.sinks.http_client import Answer, HttpClient
from streamkit.errors import StreamkitError
from streamkit.runtime.real import RealRandom

_NO_CHANNEL = (10, 11)                     # missing, or invalid
_PAUSE_TIMES_MOST = 10                     # polls: ever more seldom, up to so many times the first pause


def code_of(answer: Answer) -> int | None:
    """The collector's own; None when it gives none."""
    said = answer.json()
    code = said.get("code") if isinstance(said, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) else None


class Channel:
    """poll_seconds: the first pause between polls. used: requests on their way or not yet known, kept by Channels."""

    def __init__(self, client: HttpClient, poll_seconds: float) -> None:
        self.used = 0
        self._client = client
        self._first_seconds = self._pause_seconds = poll_seconds
        self._guid = _guid()
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._last_id = -1
        self._cookies: set[str] = set()
        self._one = asyncio.Lock()
        self._due = 0.0
        self._sooner = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """As HttpClient.open."""
        await self._client.open()

    async def send(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[Answer, asyncio.Future[bool] | None]:
        """The answer, and a ticket to wait with; None when it gives none. Raises as HttpClient.post."""
        async with self._one:
            answer = await self._post(path, body, headers)
            said = answer.json()
            ack = said.get("ackId") if answer.status == 200 and code_of(answer) == 0 else None
            if not isinstance(ack, int):
                return answer, None
            if ack <= self._last_id:
                self._forget()             # it counts anew: what it said it would index before, it may not have
            self._last_id = ack
            ticket: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._waiting[ack] = ticket
            self._poll_soon()
            return answer, ticket

    async def indexed(self, ticket: asyncio.Future[bool], seconds: float) -> bool:
        """Whether it is known to be; False: the collector has forgotten. Raises TimeoutError."""
        try:
            async with asyncio.timeout(seconds):
                return await ticket
        finally:
            self._waiting = {ack: each for ack, each in self._waiting.items() if each is not ticket}

    async def ask(self, acks: list[int]) -> Answer:
        """What the collector says of ids."""
        async with self._one:
            return await self._ask(acks)

    async def close(self) -> None:
        """Polls end, and the connection."""
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
        self._forget()
        await self._client.close()

    async def _ask(self, acks: list[int]) -> Answer:
        return await self._post("/services/collector/ack", json.dumps({"acks": acks}).encode(), {})

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        mark = "&" if "?" in path else "?"
        answer = await self._client.post(f"{path}{mark}channel={self._guid}", body,
                                         {**headers, "X-Splunk-Request-Channel": self._guid})  # fmt: skip
        cookies = set(self._client.cookies())
        # Balancers give cookies new values all the time; one that is gone leads to any node.
        if code_of(answer) in _NO_CHANNEL or self._cookies - cookies:
            self._guid = _guid()
            self._forget()
        self._cookies = cookies
        return answer

    def _forget(self) -> None:
        waiting, self._waiting, self._last_id = self._waiting, {}, -1
        for ticket in waiting.values():
            if not ticket.done():
                ticket.set_result(False)

    # ---- polls -----------------------------------------------------------------------------------------------

    def _poll_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._pause_seconds = self._first_seconds
        if self._poller is None or self._poller.done():
            self._due = loop.time() + self._pause_seconds
            self._poller = loop.create_task(self._poll())
        elif loop.time() + self._pause_seconds < self._due:
            self._due = loop.time() + self._pause_seconds
            self._sooner.set()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            while (left := self._due - loop.time()) > 0:
                self._sooner.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._sooner.wait()
            self._pause_seconds = min(self._pause_seconds * 2, self._first_seconds * _PAUSE_TIMES_MOST)
            # A poll without an answer may have taken a "true" with it: those ids time out, and are sent again.
            with suppress(StreamkitError):
                async with self._one:      # ids may be given out anew until it is this poll's turn
                    said = (await self._ask(list(self._waiting))).json()
                    self._know(said.get("acks") if isinstance(said, dict) else None)
            self._due = loop.time() + self._pause_seconds

    def _know(self, acks: object) -> None:
        for ack, ticket in list(self._waiting.items()):
            if isinstance(acks, dict) and acks.get(str(ack)) is True:
                del self._waiting[ack]
                if not ticket.done():      # who waited may have gone
                    ticket.set_result(True)


class Channels:
    """Up to `most` channels, each with at most used_max requests that are not known to be indexed."""

    def __init__(self, make: Callable[[], Channel], most: int, used_max: int) -> None:
        self._make = make
        self._most = most
        self._used_max = used_max
        self._channels: list[Channel] = []
        self._changed = asyncio.Condition()

    async def first(self) -> Channel:
        """One of them, to ask it something."""
        async with self._changed:
            return self._channels[0] if self._channels else await self._made()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Channel]:
        """The least used one, as long as something of it is not known."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            channel = min(self._channels, key=lambda each: each.used, default=None)
            if channel is None or (channel.used and len(self._channels) < self._most):
                channel = await self._made()
            channel.used += 1
        try:
            yield channel
        finally:
            channel.used -= 1
            async with self._changed:
                self._changed.notify_all()

    async def close(self) -> None:
        """All of them."""
        for channel in self._channels:
            await channel.close()
        self._channels = []

    def _has_room(self) -> bool:
        return len(self._channels) < self._most or any(each.used < self._used_max for each in self._channels)

    async def _made(self) -> Channel:
        channel = self._make()
        await channel.open()
        self._channels.append(channel)
        return channel


def _guid() -> str:
    text = RealRandom().uuid().hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
