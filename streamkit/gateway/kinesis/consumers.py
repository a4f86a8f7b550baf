"""Registered consumers of the Kinesis API: the names that enhanced fan-out is given to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamkit.gateway.calls import Call
from streamkit.gateway.errors import in_use, invalid_argument, limit_exceeded, not_found
from streamkit.gateway.kinesis.directory import Directory
from streamkit.gateway.kinesis.names import ConsumerName, Place
from streamkit.gateway.kinesis.notes import ConsumerNote, decode_note, encode_note
from streamkit.gateway.kinesis.requests import add_tags, consumer_of, place_of
from streamkit.gateway.kinesis.tokens import Tokens

_PAGE_MAX = 100


class Consumers:
    def __init__(self, directory: Directory, tokens: Tokens) -> None:
        self._directory = directory
        self._tokens = tokens

    async def register(self, call: Call) -> dict[str, Any]:
        params, clock, client = call.params, self._directory.clock, self._directory.client
        place = place_of({"StreamARN": params["StreamARN"]}, call.caller)
        found = await self._directory.find(place)
        there, name = await self._directory.consumers(place), params["ConsumerName"]
        if len(there) >= self._directory.config.consumers_max:
            raise limit_exceeded(
                f"Stream {place.name} under account {place.account} has {len(there)} registered consumers already.",
            )
        now_ms = clock.now_ms()
        note = ConsumerNote(name, now_ms, add_tags({}, params.get("Tags", {})))
        while True:
            swaps: list[tuple[str, int, bytes | None]] = [(place.consumers + name, 0, encode_note(note))]
            if not found.revision:
                # The stream has a note from now on: when that goes, so do its consumers.
                swaps.append((place.key, 0, encode_note(found.note)))
            if await client.swap_notes(swaps) is not None:
                break
            if (await client.read_note(place.consumers + name))[0] is not None:
                raise in_use(f"Consumer {name} under stream {place.name} already exists for account {place.account}.")
            found = await self._directory.find(place)
        return {"Consumer": {**_told(place, note), "ConsumerStatus": "CREATING"}}

    async def describe(self, call: Call) -> dict[str, Any]:
        consumer = consumer_of(call.params, call.caller)
        note, _ = await self.find(consumer)
        return {"ConsumerDescription": {**_told(consumer.place, note), "StreamARN": consumer.place.arn}}

    async def deregister(self, call: Call) -> None:
        consumer = consumer_of(call.params, call.caller)
        while True:
            _, revision = await self.find(consumer)
            swap = (consumer.place.consumers + consumer.name, revision, None)
            if await self._directory.client.swap_notes([swap]) is not None:
                return

    async def list(self, call: Call) -> dict[str, Any]:
        params = call.params
        place, after = place_of({"StreamARN": params["StreamARN"]}, call.caller), ""
        found = await self._directory.find(place)
        if "NextToken" in params:
            page = self._tokens.read_page(params["NextToken"], "ListStreamConsumers")
            if page.place != place:
                raise invalid_argument("NextToken is of another stream.")
            after = page.after
        if params.get("StreamCreationTimestamp", found.created_ms) // 1000 != found.created_ms // 1000:
            raise not_found(f"Stream {place.name} under account {place.account} was not created at that time.")
        there = [note for note, _ in await self._directory.consumers(place) if note.name > after]
        limit = min(params.get("MaxResults", _PAGE_MAX), _PAGE_MAX)
        answer: dict[str, Any] = {"Consumers": [_told(place, note) for note in there[:limit]]}
        if len(there) > limit:
            answer["NextToken"] = self._tokens.page("ListStreamConsumers", place, there[limit - 1].name)
        return answer

    # -- for others ----------------------------------------------------------------------------------------

    async def find(self, consumer: ConsumerName) -> tuple[ConsumerNote, int]:
        """With its revision. Raises ApiError (ResourceNotFoundException)."""
        place = consumer.place
        await self._directory.look(place)
        key = place.consumers + consumer.name
        value, revision = await self._directory.client.read_note(key)
        note = None if value is None else decode_note(ConsumerNote, key, value)
        if note is None or consumer.created_s not in (None, note.created_ms // 1000):
            raise not_found(
                f"Consumer {consumer.name} under stream {place.name} not found for account {place.account}.",
            )
        return note, revision

    async def change(self, consumer: ConsumerName, edit: Callable[[ConsumerNote], ConsumerNote]) -> None:
        while True:
            note, revision = await self.find(consumer)
            swap = (consumer.place.consumers + consumer.name, revision, encode_note(edit(note)))
            if await self._directory.client.swap_notes([swap]) is not None:
                return


def _told(place: Place, note: ConsumerNote) -> dict[str, Any]:
    return {
        "ConsumerName": note.name, "ConsumerARN": place.consumer_arn(note.name, note.created_ms // 1000),
        "ConsumerStatus": "ACTIVE", "ConsumerCreationTimestamp": note.created_ms,
    }  # fmt: skip
