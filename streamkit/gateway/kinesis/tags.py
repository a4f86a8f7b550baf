"""Tags and resource policies of the Kinesis API; both families of tag calls see the same tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from streamkit.gateway.calls import Call
from streamkit.gateway.errors import ApiError, invalid_argument, not_found
from streamkit.gateway.kinesis.consumers import Consumers
from streamkit.gateway.kinesis.directory import Directory
from streamkit.gateway.kinesis.names import ConsumerName, Place, parse_consumer_arn, parse_stream_arn
from streamkit.gateway.kinesis.notes import ConsumerNote, StreamNote
from streamkit.gateway.kinesis.requests import add_tags, own, place_of

_TAGS_MAX = 50
_POLICY_CHARACTERS_MAX = 20_480

Note = StreamNote | ConsumerNote


class Tags:
    def __init__(self, directory: Directory, consumers: Consumers) -> None:
        self._directory = directory
        self._consumers = consumers

    # -- of a stream, by name ------------------------------------------------------------------------------

    async def add(self, call: Call) -> None:
        await self._change(place_of(call.params, call.caller), lambda tags: add_tags(tags, call.params["Tags"]))

    async def remove(self, call: Call) -> None:
        await self._change(place_of(call.params, call.caller), _without(call.params["TagKeys"]))

    async def list(self, call: Call) -> dict[str, Any]:
        found = await self._directory.find(place_of(call.params, call.caller))
        after = call.params.get("ExclusiveStartTagKey", "")
        keys = sorted(key for key in found.note.tags if key > after)
        limit = call.params.get("Limit", _TAGS_MAX)
        return {"Tags": _told(found.note.tags, keys[:limit]), "HasMoreTags": len(keys) > limit}

    # -- of any resource, by ARN ---------------------------------------------------------------------------

    async def add_by_arn(self, call: Call) -> None:
        await self._change(self._resource(call), lambda tags: add_tags(tags, call.params["Tags"]))

    async def remove_by_arn(self, call: Call) -> None:
        await self._change(self._resource(call), _without(call.params["TagKeys"]))

    async def list_by_arn(self, call: Call) -> dict[str, Any]:
        tags = (await self._note(self._resource(call))).tags
        return {"Tags": _told(tags, sorted(tags))}

    # -- policies ------------------------------------------------------------------------------------------

    async def put_policy(self, call: Call) -> None:
        policy = call.params["Policy"]
        try:
            valid = isinstance(msgspec.json.decode(policy), dict) and len(policy) <= _POLICY_CHARACTERS_MAX
        except msgspec.DecodeError:
            valid = False
        if not valid:
            raise invalid_argument("The policy is not a JSON object of at most 20 KiB.")
        await self._edit(self._resource(call), {"policy": lambda _: policy})

    async def get_policy(self, call: Call) -> dict[str, Any]:
        note = await self._note(self._resource(call))
        if not note.policy:
            raise _no_policy(call.params["ResourceARN"])
        return {"Policy": note.policy}

    async def delete_policy(self, call: Call) -> None:
        resource = self._resource(call)
        if not (await self._note(resource)).policy:
            raise _no_policy(call.params["ResourceARN"])
        await self._edit(resource, {"policy": lambda _: ""})

    # -- both ----------------------------------------------------------------------------------------------

    def _resource(self, call: Call) -> Place | ConsumerName:
        arn = call.params["ResourceARN"]
        if "/consumer/" in arn:
            consumer = parse_consumer_arn(arn)
            own(consumer.place, call.caller)
            return consumer
        if ":channel/" in arn or ":queue/" in arn:
            raise not_found(f"{arn} does not exist: there are no channels and queues.")
        return own(parse_stream_arn(arn), call.caller)

    async def _note(self, resource: Place | ConsumerName) -> Note:
        if isinstance(resource, ConsumerName):
            return (await self._consumers.find(resource))[0]
        return (await self._directory.find(resource)).note

    async def _change(
        self, resource: Place | ConsumerName, edit: Callable[[Mapping[str, str]], dict[str, str]]
    ) -> None:
        await self._edit(resource, {"tags": edit})

    async def _edit(self, resource: Place | ConsumerName, edits: Mapping[str, Callable[[Any], Any]]) -> None:
        def edited(note: Any) -> Any:
            return msgspec.structs.replace(note, **{name: edit(getattr(note, name)) for name, edit in edits.items()})

        if isinstance(resource, ConsumerName):
            await self._consumers.change(resource, edited)
        else:
            await self._directory.change(resource, lambda found: edited(found.note))


def _without(keys: list[str]) -> Callable[[Mapping[str, str]], dict[str, str]]:
    return lambda tags: {key: value for key, value in tags.items() if key not in keys}


def _told(tags: Mapping[str, str], keys: list[str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": tags[key]} for key in keys]


def _no_policy(arn: str) -> ApiError:
    return not_found(f"No resource policy is set on {arn}.")
