"""Streams of the Kinesis API: made, removed, described, listed; what can be set on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from streamkit.gateway.calls import Call
from streamkit.gateway.errors import in_use, invalid_argument, validation
from streamkit.gateway.kinesis.directory import Directory, Found, not_active
from streamkit.gateway.kinesis.names import Place
from streamkit.gateway.kinesis.notes import METRICS, AccountNote, Pending, StreamNote, decode_note, encode_note
from streamkit.gateway.kinesis.requests import add_tags, place_of
from streamkit.gateway.kinesis.shards import described, normal_id
from streamkit.gateway.kinesis.tokens import Tokens

_PAGE_MAX = 100
_ON_DEMAND_SHARDS = 4
_RETENTION_HOURS = (24, 8_760)


class Streams:
    def __init__(self, directory: Directory, tokens: Tokens) -> None:
        self._directory = directory
        self._tokens = tokens

    # -- life ----------------------------------------------------------------------------------------------

    async def create(self, call: Call) -> None:
        params = call.params
        mode = params.get("StreamModeDetails", {}).get("StreamMode", "PROVISIONED")
        warm, distribution = params.get("WarmThroughputMiBps", 0), params.get("RecordDistributionStrategy")
        if mode == "PROVISIONED":
            shards = params.get("ShardCount", 1)
            if warm or distribution == "AUTO":
                raise validation(
                    "WarmThroughputMiBps and RecordDistributionStrategy are for streams in ON_DEMAND mode.",
                )
        else:
            shards = _ON_DEMAND_SHARDS
        note = StreamNote(
            native="", shards=shards, mode=mode, tags=add_tags({}, params.get("Tags", {})),
            max_record_kib=params.get("MaxRecordSizeInKiB", 1_024), warm_mibps=warm,
            distribution=distribution or "USER_PARTITION_KEY",
        )
        await self._directory.create(Place(call.caller.account, call.caller.region, params["StreamName"]), note)

    async def delete(self, call: Call) -> None:
        place, directory = place_of(call.params, call.caller), self._directory
        found = await directory.find(place)
        if found.status == "DELETING":
            raise not_active(found)
        if not call.params.get("EnforceConsumerDeletion") and (consumers := await directory.consumers(place)):
            raise in_use(
                f"Stream {place.name} under account {place.account} has {len(consumers)} registered consumers; "
                "deregister them, or set EnforceConsumerDeletion.",
            )
        await directory.start(place, Pending("delete", directory.clock.now_ms()), anyhow=True)

    # -- describing ----------------------------------------------------------------------------------------

    async def describe(self, call: Call) -> dict[str, Any]:
        params = call.params
        found = await self._directory.find(place_of(params, call.caller))
        limit = min(params.get("Limit", _PAGE_MAX), _PAGE_MAX)
        after = normal_id(params["ExclusiveStartShardId"]) if "ExclusiveStartShardId" in params else ""
        shards = [shard for shard in found.shards if shard.id > after]
        return {
            "StreamDescription": {
                **_common(found),
                "Shards": [described(shard) for shard in shards[:limit]],
                "HasMoreShards": len(shards) > limit,
            }
        }

    async def describe_summary(self, call: Call) -> dict[str, Any]:
        found = await self._directory.find(place_of(call.params, call.caller))
        note = found.note
        summary = {
            **_common(found),
            "OpenShardCount": len(found.open_shards),
            "ConsumerCount": len(await self._directory.consumers(found.place)),
            "MaxRecordSizeInKiB": note.max_record_kib,
            "ChannelCount": 0,
            "QueueCount": 0,
            "RecordDistributionStrategy": note.distribution,
        }
        if note.mode == "ON_DEMAND":
            summary["WarmThroughput"] = {"TargetMiBps": note.warm_mibps, "CurrentMiBps": note.warm_mibps}
        return {"StreamDescriptionSummary": summary}

    async def list(self, call: Call) -> dict[str, Any]:
        params = call.params
        after = params.get("ExclusiveStartStreamName", "")
        if "NextToken" in params:
            after = self._tokens.read_page(params["NextToken"], "ListStreams").after
        limit = min(params.get("Limit", _PAGE_MAX), _PAGE_MAX)
        account, region = call.caller.account, call.caller.region
        found = [each for each in await self._directory.all(account, region) if each.place.name > after]
        page = found[:limit]
        answer: dict[str, Any] = {
            "StreamNames": [each.place.name for each in page],
            "HasMoreStreams": len(found) > limit,
            "StreamSummaries": [
                {
                    "StreamName": each.place.name, "StreamARN": each.place.arn, "StreamStatus": each.status,
                    "StreamModeDetails": {"StreamMode": each.note.mode}, "StreamCreationTimestamp": each.created_ms,
                }
                for each in page
            ],
        }  # fmt: skip
        if len(found) > limit:
            last = page[-1].place
            answer["NextToken"] = self._tokens.page("ListStreams", Place(account, region, ""), last.name)
        return answer

    async def describe_limits(self, call: Call) -> dict[str, Any]:
        found = await self._directory.all(call.caller.account, call.caller.region)
        shards_max = self._directory.config.shards_max
        on_demand = sum(each.note.mode == "ON_DEMAND" for each in found)
        return {
            "ShardLimit": shards_max,
            "OpenShardCount": sum(each.stream.config.shards for each in found if each.stream is not None),
            "OnDemandStreamCount": on_demand, "OnDemandStreamCountLimit": shards_max,
            "ChannelCount": 0, "ChannelCountLimit": 0,
        }  # fmt: skip

    # -- settings ------------------------------------------------------------------------------------------

    async def increase_retention(self, call: Call) -> None:
        await self._set_retention(call, up=True)

    async def decrease_retention(self, call: Call) -> None:
        await self._set_retention(call, up=False)

    async def _set_retention(self, call: Call, *, up: bool) -> None:
        found = await self._directory.active(place_of(call.params, call.caller))
        assert found.stream is not None, "it is active"
        hours, now = call.params["RetentionPeriodHours"], found.stream.config.retention_hours
        low, high = _RETENTION_HOURS
        if not low <= hours <= high:
            raise invalid_argument(f"Retention period must be between {low} and {high} hours; it was {hours}.")
        if (hours < now) if up else (hours > now):
            raise invalid_argument(
                f"Requested retention period ({hours} hours) for stream {found.place.name} must not be "
                f"{'shorter' if up else 'longer'} than the existing retention period ({now} hours). Use "
                f"{'Decrease' if up else 'Increase'}StreamRetentionPeriod API instead.",
            )
        if hours != now:
            await self._directory.client.alter_stream(found.note.native, retention_hours=hours)
        self._directory.forget(found.place)

    async def set_mode(self, call: Call) -> None:
        mode = call.params["StreamModeDetails"]["StreamMode"]
        warm = call.params.get("WarmThroughputMiBps")
        if warm is not None and mode != "ON_DEMAND":
            raise validation("WarmThroughputMiBps is for streams in ON_DEMAND mode.")

        def edit(note: StreamNote) -> StreamNote:
            settings = {"mode": mode, "warm_mibps": warm or 0}
            if mode == "PROVISIONED":
                settings["distribution"] = "USER_PARTITION_KEY"
            return msgspec.structs.replace(note, **settings)

        await self._update(place_of(call.params, call.caller), edit)

    async def start_encryption(self, call: Call) -> None:
        key_id, kind = call.params["KeyId"], call.params["EncryptionType"]
        await self._update(
            place_of(call.params, call.caller),
            lambda note: msgspec.structs.replace(note, encryption=kind, key_id=key_id if kind == "KMS" else ""),
        )

    async def stop_encryption(self, call: Call) -> None:
        await self._update(
            place_of(call.params, call.caller), lambda note: msgspec.structs.replace(note, encryption="NONE", key_id="")
        )

    async def set_max_record_size(self, call: Call) -> None:
        kib = call.params["MaxRecordSizeInKiB"]
        place = place_of(call.params, call.caller)
        found = await self._directory.active(place)
        await self._directory.client.alter_stream(found.note.native, record_bytes_max=kib << 10)
        await self._update(place, lambda note: msgspec.structs.replace(note, max_record_kib=kib))

    async def set_warm_throughput(self, call: Call) -> dict[str, Any]:
        warm = call.params["WarmThroughputMiBps"]
        found = await self._update(
            place_of(call.params, call.caller), lambda note: msgspec.structs.replace(note, warm_mibps=warm),
            on_demand="WarmThroughputMiBps",
        )
        return {
            "StreamARN": found.place.arn, "StreamName": found.place.name,
            "WarmThroughput": {"TargetMiBps": warm, "CurrentMiBps": warm},
        }  # fmt: skip

    async def set_distribution(self, call: Call) -> None:
        strategy = call.params["RecordDistributionStrategy"]
        await self._update(
            place_of(call.params, call.caller), lambda note: msgspec.structs.replace(note, distribution=strategy),
            on_demand="RecordDistributionStrategy",
        )

    async def enable_monitoring(self, call: Call) -> dict[str, Any]:
        return await self._set_monitoring(call, lambda now, named: now | named)

    async def disable_monitoring(self, call: Call) -> dict[str, Any]:
        return await self._set_monitoring(call, lambda now, named: now - named)

    async def _set_monitoring(self, call: Call, combine: Any) -> dict[str, Any]:
        named = set(call.params["ShardLevelMetrics"])
        named = set(METRICS) if "ALL" in named else named
        before: tuple[str, ...] = ()
        after: tuple[str, ...] = ()

        def edit(note: StreamNote) -> StreamNote:
            nonlocal before, after
            before, wanted = note.monitoring, combine(set(note.monitoring), named)
            after = tuple(name for name in METRICS if name in wanted)
            return msgspec.structs.replace(note, monitoring=after)

        found = await self._update(place_of(call.params, call.caller), edit)
        return {
            "StreamName": found.place.name, "StreamARN": found.place.arn,
            "CurrentShardLevelMetrics": [*before], "DesiredShardLevelMetrics": [*after],
        }  # fmt: skip

    async def _update(self, place: Place, edit: Any, *, on_demand: str = "") -> Found:
        # A setting of an ACTIVE stream; on_demand: the member that is refused where the mode is another.
        def change(found: Found) -> StreamNote:
            if found.status != "ACTIVE":
                raise not_active(found)
            if on_demand and found.note.mode != "ON_DEMAND":
                raise validation(f"{on_demand} is for streams in ON_DEMAND mode.")
            note: StreamNote = edit(found.note)
            return note

        return await self._directory.change(place, change)

    # -- account -------------------------------------------------------------------------------------------

    async def describe_account(self, call: Call) -> dict[str, Any]:
        note, _ = await self._account(call)
        return {"MinimumThroughputBillingCommitment": _commitment(note)}

    async def update_account(self, call: Call) -> dict[str, Any]:
        wanted = call.params["MinimumThroughputBillingCommitment"]["Status"]
        while True:
            note, revision = await self._account(call)
            if note.commitment == wanted:
                return {"MinimumThroughputBillingCommitment": _commitment(note)}
            changed = AccountNote(wanted, self._directory.clock.now_ms() if wanted == "ENABLED" else 0)
            swap = (_account_key(call), revision, encode_note(changed))
            await self._directory.client.swap_notes([swap])

    async def _account(self, call: Call) -> tuple[AccountNote, int]:
        key = _account_key(call)
        value, revision = await self._directory.client.read_note(key)
        return (decode_note(AccountNote, key, value) if value is not None else AccountNote()), revision


def _account_key(call: Call) -> str:
    return Place(call.caller.account, call.caller.region, "").space + "account"


def _commitment(note: AccountNote) -> Mapping[str, Any]:
    told: dict[str, Any] = {"Status": note.commitment}
    if note.commitment_since_ms:
        told["StartedAt"] = note.commitment_since_ms
    return told


def _common(found: Found) -> dict[str, Any]:
    """What DescribeStream and DescribeStreamSummary both tell."""
    note = found.note
    told = {
        "StreamName": found.place.name, "StreamARN": found.place.arn, "StreamStatus": found.status,
        "StreamModeDetails": {"StreamMode": note.mode},
        "RetentionPeriodHours": found.stream.config.retention_hours if found.stream is not None else 24,
        "StreamCreationTimestamp": found.created_ms,
        "EnhancedMonitoring": [{"ShardLevelMetrics": [*note.monitoring]}],
        "EncryptionType": note.encryption,
    }  # fmt: skip
    if note.key_id:
        told["KeyId"] = note.key_id
    return told
