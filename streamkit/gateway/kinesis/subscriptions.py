"""SubscribeToShard: records pushed to a registered consumer as they are committed, for five minutes at a time.

    new ──▶ running ──▶ over: five minutes, the shard's end, the reader gone, taken over, or a fault

One subscription at a time for a consumer and shard: a new one is refused for the first five seconds of another's life
and takes over from then on. That is a matter of one gateway: a consumer that subscribes twice through two nodes is
served twice.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import msgspec

from streamkit._core.replies import frame_event
from streamkit.errors import StreamkitError
from streamkit.gateway.calls import Call
from streamkit.gateway.errors import ApiError, in_use, limit_exceeded
from streamkit.gateway.kinesis.consumers import Consumers
from streamkit.gateway.kinesis.directory import Directory, Found, no_such_stream
from streamkit.gateway.kinesis.gets import Part, read_part, with_records
from streamkit.gateway.kinesis.names import ConsumerName
from streamkit.gateway.kinesis.reading import start_of
from streamkit.gateway.kinesis.requests import consumer_of, shard_of
from streamkit.gateway.kinesis.shards import children_of, start_number
from streamkit.gateway.kinesis.throttles import Throttles
from streamkit.http.exchange import Response, Sender
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import Shard

logger = logging.getLogger("streamkit.gateway")

_JSON = "application/x-amz-json-1.1"       # of the events, whatever the request's format
_EVENT_BYTES_MAX = 256 << 10            # of records; a larger one comes alone
_EVENT_COUNT_MAX = 10_000
_BEGIN_SECONDS = 5.0           # from the answer to its first byte
_INITIAL = frame_event(
    ((":message-type", "event"), (":event-type", "initial-response"), (":content-type", _JSON)), b"{}"
)
_EVENT = ((":message-type", "event"), (":event-type", "SubscribeToShardEvent"), (":content-type", _JSON))


@dataclass(slots=True, eq=False)
class Subscription:
    """began_ms: on the monotonic clock. over: set to end it. taken: by another subscription. runs: or did."""

    began_ms: int
    over: asyncio.Event
    taken: bool = False
    runs: bool = False


class Subscriptions:
    def __init__(self, directory: Directory, consumers: Consumers, throttles: Throttles) -> None:
        self._directory = directory
        self.consumers = consumers
        self._throttles = throttles
        self._running: dict[tuple[str, bytes], Subscription] = {}

    @property
    def count(self) -> int:
        return len(self._running)

    async def subscribe(self, call: Call) -> Response:
        params, directory, clock = call.params, self._directory, self._directory.clock
        consumer = consumer_of(params, call.caller)
        await self.consumers.find(consumer)
        found, shard = await shard_of(directory, consumer.place, params["ShardId"])
        position = params["StartingPosition"]
        key = (consumer.place.consumer_arn(consumer.name, consumer.created_s or 0), shard.uuid)
        if not self._throttles.subscribe(found, key, clock.monotonic_ms()):
            raise limit_exceeded(f"Rate exceeded for consumer {consumer.name} and shard {shard.id}.")
        start = await start_of(
            directory, found, shard, position["Type"], position.get("SequenceNumber"), position.get("Timestamp")
        )
        # From here on nothing is waited for: of two that come together one is refused.
        before, now_ms = self._running.get(key), clock.monotonic_ms()
        if before is not None and now_ms - before.began_ms < directory.config.take_over_seconds * 1_000:
            raise in_use(
                f"Another active subscription exists for this consumer: {consumer.place.account}:{consumer.place.name}:"
                f"{consumer.name} and shard {shard.id}."
            )
        if before is None and len(self._running) >= directory.config.subscriptions_max:
            raise limit_exceeded(f"This node pushes to {len(self._running)} subscriptions already.")
        call.dry_run()
        if before is not None:
            before.taken = True
            before.over.set()
        self._running[key] = subscription = Subscription(now_ms, asyncio.Event())
        # A client that goes away at this moment leaves an answer that nobody sends.
        asyncio.get_running_loop().call_later(_BEGIN_SECONDS, self._unless_it_runs, key, subscription)
        push = _Push(self, consumer, found, shard, start, subscription, key)
        return Response(
            200, (("content-type", "application/vnd.amazon.eventstream"),), stream=push.run
        )

    def end(self) -> None:
        """All of them, for a node that stops: their consumers subscribe again, elsewhere or later."""
        for subscription in self._running.values():
            subscription.over.set()

    def _unless_it_runs(self, key: tuple[str, bytes], subscription: Subscription) -> None:
        if not subscription.runs:
            self.ended(key, subscription)

    def ended(self, key: tuple[str, bytes], subscription: Subscription) -> None:
        if self._running.get(key) is subscription:
            del self._running[key]


class _Push:
    """One subscription's way through its shard."""

    def __init__(
        self, all_of_them: Subscriptions, consumer: ConsumerName, found: Found, shard: Shard, start: int,
        subscription: Subscription, key: tuple[str, bytes],
    ) -> None:
        self._all = all_of_them
        self._directory = all_of_them._directory
        self._consumer = consumer
        self._found = found
        self._shard = shard
        self._position = start
        self._subscription = subscription
        self._key = key
        self._sending = False
        # Nothing was delivered yet: what comes after the record before the first one.
        self._continuation = start_number(shard) if start == 0 else sequence_number(
            start - 1, ordinal=shard.ordinal, created_ms=shard.created_ms, arrived_ms=self._directory.clock.now_ms()
        )  # fmt: skip

    async def run(self, sender: Sender) -> None:
        self._subscription.runs = True
        pushing = asyncio.get_running_loop().create_task(self._push(sender))
        taken = asyncio.ensure_future(self._subscription.over.wait())
        try:
            await asyncio.wait(
                {pushing, taken}, timeout=self._directory.config.subscription_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )  # fmt: skip
            if not pushing.done():
                pushing.cancel()
                await asyncio.wait({pushing})
                if self._subscription.taken and not self._sending:     # in the middle of an event it would be lost
                    await self._say(sender, "ResourceInUseException", "Another subscription has taken over.")
            elif not pushing.cancelled() and (error := pushing.exception()) is not None:
                raise error
        finally:
            pushing.cancel()
            taken.cancel()
            self._all.ended(self._key, self._subscription)

    async def _push(self, sender: Sender) -> None:
        await self._send(sender, _INITIAL)
        clock = self._directory.clock
        idle_ms = int(self._directory.config.subscription_idle_seconds * 1_000)
        looked_ms = clock.monotonic_ms()
        while True:
            try:
                if clock.monotonic_ms() - looked_ms >= idle_ms:
                    looked_ms = clock.monotonic_ms()
                    if not await self._is_registered():
                        return
                part = await read_part(
                    self._directory, self._found, self._shard, self._position, cbor=False,
                    count_max=_EVENT_COUNT_MAX, bytes_max=_EVENT_BYTES_MAX, wait_ms=idle_ms,
                )
                if part.control:
                    self._directory.forget(self._found.place)      # the shard's map may be another one now
                place, shard = self._found.place, self._shard
                self._found, now = await self._directory.with_shard(place, shard.ordinal, shard.uuid)
                if now is None:
                    raise no_such_stream(place)
                self._shard = now
            except (StreamkitError, ApiError) as error:
                await self._fail(sender, error)
                return
            self._position = part.position
            ended = part.at_end or self._is_at_end()
            await self._send(sender, self._event(part, ended))
            if ended:
                return

    async def _send(self, sender: Sender, event: bytes) -> None:
        self._sending = True
        await sender.send(event)
        self._sending = False

    async def _is_registered(self) -> bool:
        """A consumer that is no more is served no more; what is wrong with it is told when it subscribes again."""
        try:
            await self._all.consumers.find(self._consumer)
        except ApiError as error:
            if error.name == "ResourceNotFoundException":
                return False
            raise
        return True

    def _is_at_end(self) -> bool:
        shard = self._shard
        return shard.end is not None and self._position >= shard.end and bool(children_of(self._found, shard))

    def _event(self, part: Part, ended: bool) -> bytes:
        members: dict[str, Any] = {"MillisBehindLatest": part.behind_ms}
        if part.records.count:
            self._continuation = sequence_number(
                part.records.last_sequence, ordinal=self._shard.ordinal, created_ms=self._shard.created_ms,
                arrived_ms=part.records.last_append_ms,
            )
        if ended:
            members["ChildShards"] = children_of(self._found, self._shard)
        else:
            members["ContinuationSequenceNumber"] = self._continuation
        return frame_event(_EVENT, with_records(part.records.body, members, cbor=False))

    async def _fail(self, sender: Sender, error: Exception) -> None:
        # Only what is gone is said to be gone: a reader takes a missing shard for one that is finished.
        logger.info("kinesis.subscription_ended", extra={"facts": {
            "consumer": self._consumer.name, "shard": self._shard.id, "error": str(error)
        }})  # fmt: skip
        if isinstance(error, ApiError) and error.name == "ResourceNotFoundException":
            await self._say(sender, error.name, error.message or "")
        else:
            await self._say(sender, "InternalFailureException", "The subscription has ended; subscribe again.")

    async def _say(self, sender: Sender, name: str, message: str) -> None:
        headers = ((":message-type", "exception"), (":exception-type", name), (":content-type", _JSON))
        await self._send(sender, frame_event(headers, msgspec.json.encode({"message": message})))
