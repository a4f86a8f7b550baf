"""Membership: join, show signs of life, learn which leases come and go, and know by oneself when it is too late.

The worker's own deadline is earlier than the coordinator's: the moment it sent the last heartbeat that was answered,
plus the time-out, less a tenth. Past it the worker gives its leases up without waiting for anybody. When its
connection breaks, one heartbeat's time (less a tenth) is left, as the coordinator counts it too.

    joining ──Membership──▶ member ──deadline, or "not a member"──▶ joining, with all leases lost
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from streamkit.client.client import AsyncClient
from streamkit.consumer.deadline import Deadline
from streamkit.errors import (
    ApplicationNotFound,
    ConnectionFailed,
    LeaseLost,
    StreamkitError,
    StreamNotFound,
    TimedOut,
    Unavailable,
)
from streamkit.protocol.messages import (
    Heartbeat,
    JoinApplication,
    LeaseGrant,
    LeaveApplication,
    Membership,
    ReleaseLeases,
    WorkerReport,
)
from streamkit.runtime.backoff import Backoff

log = logging.getLogger("streamkit.consumer")


@dataclass(frozen=True, slots=True)
class Listeners:
    """Called on the loop, in the order things were learned."""

    granted: Callable[[LeaseGrant], None]
    draining: Callable[[bytes], None]
    lost: Callable[[bytes], None]


class LeaseKeeper:
    """One membership. `run` as a task until it is cancelled; then `leave`."""

    def __init__(
        self, client: AsyncClient, join: JoinApplication, listeners: Listeners,
        report: Callable[[], WorkerReport | None] = lambda: None,
    ) -> None:
        self.session = 0
        self.joined = asyncio.Event()
        self.leaving = False               # releases say so: what is given up must not come back
        self._client = client
        self._clock = client.runtime.clock
        self._join = join
        self._listeners = listeners
        self._report = report
        self._owned: dict[bytes, int] = {}
        self._done_with: dict[bytes, int] = {}     # lease epochs released here; a late answer may still name them
        self._missing: tuple[str, ...] = ()
        self.deadline = Deadline(self._clock)
        self._membership_ms = join.membership_ms
        self._in_doubt = False             # the last heartbeat was not answered
        self._before = 0                   # the last session, when it is over
        self._incarnation = client.runtime.random.bits(63) if join.instance else 0

    async def run(self) -> None:
        """Raises StreamNotFound when none of the streams exists any more, and what makes a join impossible.

        InstanceTaken: another worker was started under this one's instance name.
        """
        backoff = Backoff(self._client.runtime.random, 50, 1_000)
        watch = asyncio.get_running_loop().create_task(self._watch_deadline())
        try:
            while True:
                try:
                    await (self._beat() if self.session else self._enter())
                    backoff.reset()
                    self._in_doubt = False
                except (LeaseLost, ApplicationNotFound) as error:
                    log.warning("worker.expelled application=%s worker=%s error=%s", self._join.application,
                                self._join.worker, error)
                    self._lose_everything()
                except (Unavailable, TimedOut) as error:
                    self._in_doubt = True
                    if isinstance(error, ConnectionFailed) and not self._join.instance:
                        self._shorten_deadline()
                    log.warning("worker.heartbeat_failed application=%s error=%s", self._join.application, error)
                    await asyncio.sleep(backoff.next_ms() / 1000)
        finally:
            watch.cancel()

    async def release(self, shard: bytes, lease_epoch: int) -> None:
        """The lease is finished with; told until it is heard, or until the session is over.

        Nothing to do when it was lost already. A lease that only this side believes lost must be released too: it
        comes back with the next lease epoch, whose checkpoint numbers start anew.
        """
        session = self.session
        if self._owned.get(shard) != lease_epoch:
            return
        del self._owned[shard]
        self._done_with[shard] = lease_epoch
        if self.leaving and self._join.instance:
            return                         # it waits for the next worker of that name
        backoff = Backoff(self._client.runtime.random, 50, 1_000)
        leaving_session = session if self.leaving else 0
        message = ReleaseLeases(self._join.application, self._join.worker, ((shard, lease_epoch),), leaving_session)
        while session and session == self.session:
            try:
                await self._client.call(message)
                return
            except (Unavailable, TimedOut):
                await asyncio.sleep(backoff.next_ms() / 1000)
            except StreamkitError as error:
                log.info("lease.release_refused error=%s", error)
                return

    async def leave(self) -> None:
        """Say so once; a coordinator that does not hear it waits for the time-out. An instance will be back."""
        session, self.session = self.session, 0
        self.joined.clear()
        if not session:
            return
        try:
            await self._client.call(
                LeaveApplication(
                    self._join.application, self._join.worker, session, away=self._join.instance != ""
                ),
                timeout_ms=self._membership_ms // 2,
            )
        except StreamkitError as error:
            log.info("worker.leave_unheard application=%s error=%s", self._join.application, error)

    async def _enter(self) -> None:
        for stream in self._join.streams:
            with contextlib.suppress(StreamNotFound):
                await self._client.stream(stream)          # a node that makes missing streams makes it now
        sent_ms = self._clock.monotonic_ms()
        join = msgspec.structs.replace(self._join, incarnation=self._incarnation, before=self._before)
        answer = await self._client.call(join)
        assert isinstance(answer, Membership), "a join is answered with a membership"
        self._owned.clear()
        self._done_with.clear()
        self.session = answer.session
        self._learn(answer, sent_ms)
        self.joined.set()
        log.info("worker.joined application=%s worker=%s session=%d", self._join.application, self._join.worker,
                 self.session)

    async def _beat(self) -> None:
        session = self.session
        sent_ms = self._clock.monotonic_ms()
        # Whoever missed an answer needs the next one at once: a wait for news may be longer than the time that is left.
        wait_ms = 0 if self._in_doubt else self._membership_ms * 3 // 10
        answer = await self._client.call(
            Heartbeat(self._join.application, self._join.worker, session, tuple(self._owned.items()), wait_ms,
                      self._report()),
            timeout_ms=self._membership_ms,
        )
        assert isinstance(answer, Membership), "a heartbeat is answered with a membership"
        if session == self.session:        # else the deadline passed meanwhile, and everything was given up
            self._learn(answer, sent_ms)
        quick = self._clock.monotonic_ms() - sent_ms < wait_ms // 4
        if quick and not (answer.granted or answer.lost or answer.draining):
            await asyncio.sleep(wait_ms / 1000)            # a coordinator that does not let heartbeats wait

    def _learn(self, answer: Membership, sent_ms: int) -> None:
        self._membership_ms = answer.membership_ms
        self.deadline.at_ms = sent_ms + answer.membership_ms * 9 // 10
        for shard in answer.lost:
            if self._owned.pop(shard, None) is not None:
                self._listeners.lost(shard)
        for grant in answer.granted:
            shard, lease_epoch = grant.shard.uuid, grant.lease_epoch
            if lease_epoch <= max(self._done_with.get(shard, 0), self._owned.get(shard, 0)):
                continue
            if shard in self._owned:
                self._listeners.lost(shard)
            self._owned[shard] = lease_epoch
            self._listeners.granted(grant)
        for shard in answer.draining:
            if shard in self._owned:
                self._listeners.draining(shard)
        if answer.missing != self._missing:
            self._missing = answer.missing
            for stream in answer.missing:
                log.warning("stream.missing application=%s stream=%s", self._join.application, stream)
        if answer.missing and set(answer.missing) >= set(self._join.streams):
            name = answer.missing[0]
            raise StreamNotFound(f'stream "{name}" does not exist any more', try_="streamkit stream list", stream=name)

    def _shorten_deadline(self) -> None:
        heartbeat_ms = self._membership_ms * 3 // 10
        self.deadline.at_ms = min(self.deadline.at_ms, self._clock.monotonic_ms() + heartbeat_ms * 9 // 10)

    def check_deadline(self) -> bool:
        """Whether leases may be acted upon. From the deadline on they are lost, whoever is the first to look."""
        if self._clock.monotonic_ms() < self.deadline.at_ms:
            return True
        if self.session:
            log.warning("worker.deadline_passed application=%s worker=%s leases=%d", self._join.application,
                        self._join.worker, len(self._owned))
            self._lose_everything()
        return False

    async def _watch_deadline(self) -> None:
        while True:
            self.check_deadline()
            left_ms = self.deadline.at_ms - self._clock.monotonic_ms() if self.session else self._membership_ms
            await asyncio.sleep(min(max(left_ms, 10), self._membership_ms // 10) / 1000)

    def _lose_everything(self) -> None:
        # A new session follows: what this one held is fenced by then, even if the coordinator never noticed.
        self._before = self.session or self._before
        self.session = 0
        self.joined.clear()
        owned, self._owned = self._owned, {}
        for shard in owned:
            self._listeners.lost(shard)
