"""Orderly stop of a server process: the first SIGTERM or SIGINT asks, the second insists.

    async with StopSignal() as stop:
        await stop.wait()          # then drain and close
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from types import TracebackType

_log = logging.getLogger("streamkit.runtime")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_EXIT_INSISTED = 130


class StopSignal:
    """Listens while the `async with` block runs; on the main thread's event loop only."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self.name = ""                     # of the signal that asked

    async def __aenter__(self) -> StopSignal:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._receive, number)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    async def wait(self) -> str:
        """The name of the signal that asked to stop."""
        await self._asked.wait()
        return self.name

    def ask(self, name: str) -> None:
        """Stop for a reason of our own."""
        self.name = self.name or name
        self._asked.set()

    def _receive(self, number: int) -> None:
        if self._asked.is_set():
            _log.warning("stop.insisted signal=%s", signal.Signals(number).name)
            os._exit(_EXIT_INSISTED)       # what is acknowledged is durable; a restart recovers as after a crash
        self.ask(signal.Signals(number).name)
