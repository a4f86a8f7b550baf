"""Shards of the Kinesis API: described, listed with filters and pages, split, merged, counted anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamkit.gateway.calls import Call
from streamkit.gateway.errors import ApiError, in_use, invalid_argument, not_found, validation
from streamkit.gateway.kinesis.directory import Directory, Found
from streamkit.gateway.kinesis.names import Place, parse_shard_id
from streamkit.gateway.kinesis.notes import Pending
from streamkit.gateway.kinesis.requests import place_of
from streamkit.gateway.kinesis.tokens import Tokens
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import Shard, shard_id

_PAGE_MAX = 1_000
_SHARDS_MAX = 10_000
_HOUR_MS = 3_600_000
END_SEQUENCE = (1 << 63) - 2               # the record that a closed shard's end number would be of


def start_number(shard: Shard) -> str:
    """Below every record's; no record has it."""
    return sequence_number(-1, ordinal=shard.ordinal, created_ms=shard.created_ms, arrived_ms=shard.created_ms)


def described(shard: Shard) -> dict[str, Any]:
    """A Shard of the API. EndingSequenceNumber tells clients that it is closed."""
    numbers = {"StartingSequenceNumber": start_number(shard)}
    if shard.closed_ms is not None:
        numbers["EndingSequenceNumber"] = sequence_number(
            END_SEQUENCE, ordinal=shard.ordinal, created_ms=shard.created_ms, arrived_ms=shard.closed_ms
        )
    told = {"ShardId": shard.id, "HashKeyRange": _range(shard), "SequenceNumberRange": numbers}
    if shard.parents:
        told["ParentShardId"] = shard_id(shard.parents[0])
    if len(shard.parents) > 1:
        told["AdjacentParentShardId"] = shard_id(shard.parents[1])
    return told


def children_of(found: Found, shard: Shard) -> list[dict[str, Any]]:
    """The ChildShards of a closed one; empty while they cannot be told."""
    return [
        {"ShardId": child.id, "ParentShards": [shard_id(each) for each in child.parents], "HashKeyRange": _range(child)}
        for child in found.shards if child.ordinal in shard.children
    ]  # fmt: skip


def _range(shard: Shard) -> dict[str, str]:
    return {"StartingHashKey": str(shard.hash_start), "EndingHashKey": str(shard.hash_end - 1)}


class Shards:
    def __init__(self, directory: Directory, tokens: Tokens) -> None:
        self._directory = directory
        self._tokens = tokens

    # -- listing -------------------------------------------------------------------------------------------

    async def list(self, call: Call) -> dict[str, Any]:
        params = call.params
        if "NextToken" in params:
            for other in ("StreamName", "StreamARN", "ExclusiveStartShardId", "StreamCreationTimestamp", "ShardFilter"):
                if other in params:
                    raise invalid_argument(f"NextToken and {other} cannot be provided together.")
            page = self._tokens.read_page(params["NextToken"], "ListShards")
            place, after, rule = page.place, page.after, page.more
            if (place.account, place.region) != (call.caller.account, call.caller.region):
                raise invalid_argument("NextToken is invalid.")
        else:
            place, after = place_of(params, call.caller), params.get("ExclusiveStartShardId", "")
            after = normal_id(after) if after else ""
            rule = _rule(params.get("ShardFilter", {"Type": "FROM_TRIM_HORIZON"}))
        found = await self._directory.find(place)
        if found.status in ("CREATING", "DELETING"):
            raise in_use(
                f"Stream {place.name} under account {place.account} not ACTIVE, instead in state {found.status}",
            )
        if params.get("StreamCreationTimestamp", found.created_ms) // 1000 != found.created_ms // 1000:
            raise not_found(f"Stream {place.name} under account {place.account} was not created at that time.")
        shards = [shard for shard in self._chosen(found, rule) if shard.id > after]
        limit = min(params.get("MaxResults", _PAGE_MAX), _PAGE_MAX)
        answer: dict[str, Any] = {"Shards": [described(shard) for shard in shards[:limit]]}
        if len(shards) > limit:
            answer["NextToken"] = self._tokens.page("ListShards", place, shards[limit - 1].id, *rule)
        return answer

    def _chosen(self, found: Found, rule: Sequence[str | int]) -> Sequence[Shard]:
        kind, value = rule[0], rule[1] if len(rule) > 1 else 0
        assert found.stream is not None, "it exists"
        horizon_ms = self._directory.clock.now_ms() - found.stream.config.retention_hours * _HOUR_MS
        match kind:
            case "AT_LATEST":
                return [shard for shard in found.shards if shard.closed_ms is None]
            case "AT_TRIM_HORIZON":
                return _open_at(found.shards, horizon_ms)
            case "AT_TIMESTAMP":
                return _open_at(found.shards, max(int(value), horizon_ms))
            case "FROM_TIMESTAMP":
                since_ms = max(int(value), horizon_ms)
                return [s for s in found.shards if s.closed_ms is None or s.closed_ms >= since_ms]
            case "AFTER_SHARD_ID":
                return [shard for shard in found.shards if shard.id > str(value)]
            case _:
                return found.shards

    # -- changing ------------------------------------------------------------------------------------------

    async def split(self, call: Call) -> None:
        found = await self._reshardable(call)
        shard = _open(found, call.params["ShardToSplit"])
        at = int(call.params["NewStartingHashKey"])
        if not shard.hash_start + 1 < at < shard.hash_end - 1:
            raise invalid_argument(
                f"NewStartingHashKey {at} used in SplitShard() on shard {shard.id} in stream {found.place.name} under "
                f"account {found.place.account} is not both greater than one plus the shard's StartingHashKey "
                f"{shard.hash_start} and less than the shard's EndingHashKey {shard.hash_end - 1}.",
            )
        await self._begin(found.place, "split", shard.ordinal, at=str(at))

    async def merge(self, call: Call) -> None:
        found = await self._reshardable(call)
        low, high = (_open(found, call.params[name]) for name in ("ShardToMerge", "AdjacentShardToMerge"))
        if low.hash_end != high.hash_start:
            raise invalid_argument(
                f"Shards {low.id} and {high.id} in stream {found.place.name} under account {found.place.account} are "
                "not an adjacent pair of shards eligible for merging: the first must end where the second begins.",
            )
        await self._begin(found.place, "merge", low.ordinal, high.ordinal)

    async def update_count(self, call: Call) -> dict[str, Any]:
        found = await self._reshardable(call)
        target, count = call.params["TargetShardCount"], len(found.open_shards)
        limit = min(2 * count, _SHARDS_MAX)
        if target > limit:
            raise ApiError(
                "LimitExceededException" if target > _SHARDS_MAX else "InvalidArgumentException",
                f"UpdateShardCount cannot scale up over double your current open shard count. Current open shard "
                f"count: {count} Target shard count: {target}",
            )
        if 2 * target < count:
            raise invalid_argument(
                f"UpdateShardCount cannot scale down below half your current open shard count. Current open shard "
                f"count: {count} Target shard count: {target}",
            )
        if target != count:
            await self._begin(found.place, "scale", target)
        return {
            "StreamName": found.place.name, "StreamARN": found.place.arn, "CurrentShardCount": count,
            "TargetShardCount": target,
        }  # fmt: skip

    async def _reshardable(self, call: Call) -> Found:
        found = await self._directory.active(place_of(call.params, call.caller))
        if found.note.mode == "ON_DEMAND":
            raise validation(
                f"Request is invalid. Stream {found.place.name} under account {found.place.account} is in "
                "On-Demand mode.",
            )
        return found

    async def _begin(self, place: Place, kind: str, *shards: int, at: str = "") -> None:
        await self._directory.start(place, Pending(kind, self._directory.clock.now_ms(), shards, at))


def _open(found: Found, wanted: str) -> Shard:
    shard = found.shard(parse_shard_id(wanted))
    if shard is None:
        raise not_found(
            f"Could not find shard {wanted} in stream {found.place.name} under account {found.place.account}."
        )
    if shard.closed_ms is not None:
        raise invalid_argument(
            f"Shard {shard.id} in stream {found.place.name} under account {found.place.account} has already been "
            "merged or split, and thus is not eligible for merging or splitting.",
        )
    return shard


def _open_at(shards: Sequence[Shard], time_ms: int) -> list[Shard]:
    """What was open then: it tiles the key space. Before the oldest, the oldest.

    Children count as created when their parents closed, though their own creation is put a second later for the sake of
    their sequence numbers.
    """
    closed_ms = {shard.ordinal: shard.closed_ms for shard in shards}
    found = []
    for shard in shards:
        parents = [closed_ms[each] for each in shard.parents if each in closed_ms]
        since_ms = max((each for each in parents if each is not None), default=0)
        if since_ms <= time_ms and (shard.closed_ms is None or shard.closed_ms > time_ms):
            found.append(shard)
    return found


def _rule(wanted: dict[str, Any]) -> tuple[str | int, ...]:
    kind = wanted["Type"]
    if kind == "AFTER_SHARD_ID":
        if "ShardId" not in wanted:
            raise invalid_argument("ShardId must be provided with the filter AFTER_SHARD_ID.")
        return kind, normal_id(wanted["ShardId"])
    if kind in ("AT_TIMESTAMP", "FROM_TIMESTAMP"):
        if "Timestamp" not in wanted:
            raise invalid_argument(f"Timestamp must be provided with the filter {kind}.")
        return kind, wanted["Timestamp"]
    return (kind,)


def normal_id(wanted: str) -> str:
    """The id that a loose form means; what is none stays, and stands among the ids as text does."""
    ordinal = parse_shard_id(wanted)
    return wanted if ordinal is None else shard_id(ordinal)
