"""What requests of the Kinesis API have in common: which stream they mean, and which shard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from streamkit.gateway.calls import Caller
from streamkit.gateway.errors import invalid_argument, not_found
from streamkit.gateway.kinesis.directory import Directory, Found, no_such_stream
from streamkit.gateway.kinesis.names import ConsumerName, Place, parse_consumer_arn, parse_shard_id, parse_stream_arn
from streamkit.model.shard import Shard

_TAGS_MAX = 50
_TAG_CHARACTERS = re.compile(r"[\w\s.:/=+\-@]*")


def place_of(params: Mapping[str, Any], caller: Caller) -> Place:
    """By StreamName, StreamARN or both. Raises ApiError when there is neither, or they do not agree."""
    name, arn = params.get("StreamName"), params.get("StreamARN")
    if arn is not None:
        place = own(parse_stream_arn(arn), caller)
        if name is not None and name != place.name:
            raise invalid_argument(f"StreamName {name} and StreamARN {arn} name different streams.")
        return place
    if name is None:
        raise invalid_argument("Either StreamName or StreamARN must be provided.")
    return Place(caller.account, caller.region, name)


def own(place: Place, caller: Caller) -> Place:
    """Raises ApiError for what belongs to another account or region."""
    if (place.account, place.region) != (caller.account, caller.region):
        raise no_such_stream(place)
    return place


def consumer_of(params: Mapping[str, Any], caller: Caller) -> ConsumerName:
    """By ConsumerARN, or by StreamARN and ConsumerName; both when they agree."""
    arn, name = params.get("ConsumerARN"), params.get("ConsumerName")
    if arn is not None:
        found = parse_consumer_arn(arn)
        own(found.place, caller)
        if name not in (None, found.name) or (
            "StreamARN" in params and parse_stream_arn(params["StreamARN"]) != found.place
        ):
            raise invalid_argument("ConsumerARN names another consumer than the other members.")
        return found
    if name is None or "StreamARN" not in params:
        raise invalid_argument("Either ConsumerARN, or both StreamARN and ConsumerName must be provided.")
    return ConsumerName(place_of({"StreamARN": params["StreamARN"]}, caller), name)


async def shard_of(directory: Directory, place: Place, shard_id: str) -> tuple[Found, Shard]:
    """A usable stream and its shard of that id, as they are now. Raises ApiError (ResourceNotFoundException)."""
    # Who begins to read may be the first to see a stream that was made anew.
    found, shard = await directory.with_shard(place, parse_shard_id(shard_id), fresh=True)
    if shard is None:
        raise not_found(f"Shard {shard_id} in stream {place.name} under account {place.account} does not exist")
    return found, shard


def add_tags(tags: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Raises ApiError for tags that are not allowed, or too many."""
    for key, value in more.items():
        if not _TAG_CHARACTERS.fullmatch(key) or not _TAG_CHARACTERS.fullmatch(value):
            raise invalid_argument(
                "Some tags contain invalid characters. Valid characters: Unicode letters, digits, white space, "
                "_ . : / = + - @.",
            )
        if key.lower().startswith("aws:"):
            raise invalid_argument("Tag keys must not begin with aws:.")
    merged = {**tags, **more}
    if len(merged) > _TAGS_MAX:
        raise invalid_argument(f"A resource has at most {_TAGS_MAX} tags.")
    return merged
