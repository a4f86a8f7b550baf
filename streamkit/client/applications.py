"""Where applications go on: plans of a reset, and positions as a document that can be kept.

A plan asks the shards what a position means and changes nothing; `AsyncClient.reset_application` carries it out in one
request, so that either every shard goes on elsewhere or none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from streamkit._core.batch import read_header
from streamkit.errors import InvalidPosition, InvalidRequest
from streamkit.model.position import Position
from streamkit.model.shard import Shard, shard_id
from streamkit.model.stream import StreamDescription
from streamkit.protocol import messages as m
from streamkit.protocol.frames import Fetched

_FORMAT = "streamkit-positions-1"


class Asked(Protocol):
    """What is asked of an AsyncClient here."""

    async def stream(self, name: str, refresh: bool = False) -> StreamDescription: ...
    async def resolve_position(self, shard: Shard, position: str | datetime | Position) -> m.PositionResolved: ...
    async def fetch(self, shard: Shard, start: int, *, bytes_max: int, wait_ms: int) -> Fetched: ...


@dataclass(frozen=True, slots=True)
class PositionChange:
    """One shard of a plan.

    before, after: sequence of the first record that is not finished, now and then. before_ms, after_ms: when that
    record arrived, Unix milliseconds; None: there is none yet. again: records that come again; skipped: records that
    are passed over. sub_sequence: user records that are finished inside the aggregate at `after`.
    """

    stream: str
    shard: str
    uuid: bytes
    before: int
    after: int
    before_ms: int | None = None
    after_ms: int | None = None
    again: int = 0
    skipped: int = 0
    sub_sequence: int = 0


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What a reset does, or did. changes: in the order of streams and shards."""

    application: str
    changes: tuple[PositionChange, ...]

    @property
    def again(self) -> int:
        """Records that come again, over all shards."""
        return sum(change.again for change in self.changes)

    @property
    def skipped(self) -> int:
        """Records that are passed over, over all shards."""
        return sum(change.skipped for change in self.changes)

    def seconds(self, now_ms: int) -> float:
        """From the arrival of the first record that comes again to where the application stands now, at most."""
        return max((
            (change.before_ms or now_ms) - change.after_ms
            for change in self.changes if change.again and change.after_ms is not None
        ), default=0) / 1000

    def positions(self) -> tuple[tuple[bytes, int, int], ...]:
        """As SetPositions has them."""
        return tuple((change.uuid, change.after, change.sub_sequence) for change in self.changes)


async def plan_reset(
    client: Asked, described: m.ApplicationDescribed, to: str | datetime | Position, shards: Iterable[str] = (),
    stream: str | None = None,
) -> ResetPlan:
    """The same position in every shard, or in those named ("shardId-…"), of every stream or the one named.

    What came of a named shard by splits and merges is read again from its beginning, unless the named one stays
    finished. Raises InvalidRequest for a shard that the application does not have, InvalidPosition.
    """
    wanted = set(shards)
    states = [lease for lease in described.leases if stream in (None, lease.stream)]
    unknown = wanted - {shard_id(lease.ordinal) for lease in states}
    if unknown or not states:
        raise InvalidRequest(
            f'application "{described.application}" has no {" ".join(sorted(unknown)) or f"stream {stream}"}',
            try_=f"streamkit app describe {described.application}", field="shard", value=", ".join(sorted(unknown)),
        )
    changes = []
    reopened: set[tuple[str, int]] = set()
    for lease in sorted(states, key=lambda lease: (lease.stream, lease.ordinal)):
        shard = await _shard(client, lease)
        if shard is None:
            continue
        inherits = any((lease.stream, parent) in reopened for parent in shard.parents)
        if wanted and shard.id not in wanted and not inherits:
            continue
        named = not wanted or shard.id in wanted
        found = await client.resolve_position(shard, to if named else "trim_horizon")
        end = found.high_watermark if shard.end is None else shard.end
        after = min(found.sequence, end)
        if lease.state == "complete" and after < end:
            reopened.add((lease.stream, lease.ordinal))
        changes.append(await _change(client, lease, shard, after, 0, found))
    return ResetPlan(described.application, tuple(changes))


async def plan_import(client: Asked, described: m.ApplicationDescribed, document: Mapping[str, Any]) -> ResetPlan:
    """From what `export_positions` gave. Raises InvalidRequest unless every shard in it is there."""
    if document.get("format") != _FORMAT or not isinstance(document.get("positions"), list):
        raise InvalidRequest(
            f'not positions of an application: "format" is {document.get("format")!r}',
            try_="streamkit app export NAME > positions.json", field="format", value=str(document.get("format")),
        )
    leases = {(lease.stream, shard_id(lease.ordinal)): lease for lease in described.leases}
    changes = []
    for entry in document["positions"]:
        try:
            key = (entry["stream"], entry["shard"])
            sequence, sub_sequence = int(entry["sequence"]), int(entry.get("sub_sequence", 0))
        except (KeyError, TypeError, ValueError) as cause:
            raise InvalidRequest(
                f"not a position: {entry!r}", try_="stream, shard and sequence are needed", field="positions",
                value=repr(entry),
            ) from cause
        lease = leases.get(key)
        shard = await _shard(client, lease) if lease is not None else None
        if lease is None or shard is None or shard.uuid.hex() != entry.get("uuid", shard.uuid.hex()):
            raise InvalidRequest(
                f"{key[1]} of {key[0]} is not a shard of this application, or another one of the same name",
                try_=f"streamkit app describe {described.application}", field="positions", value=key[1],
            )
        found = await client.resolve_position(shard, "trim_horizon")
        if sequence < 0 or sequence > found.high_watermark:
            raise InvalidPosition(
                f"{sequence} is beyond {shard.id}, which ends at {found.high_watermark}",
                try_="choose a position within the shard", position=str(sequence), shard=shard.id,
            )
        changes.append(await _change(client, lease, shard, sequence, sub_sequence, found))
    return ResetPlan(described.application, tuple(changes))


async def export_positions(client: Asked, described: m.ApplicationDescribed) -> dict[str, Any]:
    """A document for JSON: every shard with the first record that is not finished."""
    positions = []
    for lease in described.leases:
        shard = await _shard(client, lease)
        if shard is not None:
            positions.append({
                "stream": lease.stream, "shard": shard.id, "uuid": shard.uuid.hex(), "sequence": lease.checkpoint,
                "sub_sequence": lease.sub_sequence,
            })
    return {"format": _FORMAT, "application": described.application, "positions": positions}


async def _shard(client: Asked, lease: m.LeaseState) -> Shard | None:
    for refresh in (False, True):
        for shard in (await client.stream(lease.stream, refresh)).shards:
            if shard.ordinal == lease.ordinal:
                return shard
    return None                            # retention took it away a moment ago


async def _change(
    client: Asked, lease: m.LeaseState, shard: Shard, after: int, sub_sequence: int, found: m.PositionResolved
) -> PositionChange:
    before = max(lease.checkpoint, found.log_start)
    return PositionChange(
        lease.stream, shard.id, shard.uuid, lease.checkpoint, after,
        await _arrival(client, shard, before, found), await _arrival(client, shard, after, found),
        max(0, before - after), max(0, after - before), sub_sequence,
    )


async def _arrival(client: Asked, shard: Shard, sequence: int, found: m.PositionResolved) -> int | None:
    if sequence >= found.high_watermark:
        return None
    fetched = await client.fetch(shard, max(sequence, found.log_start), bytes_max=1, wait_ms=0)
    return read_header(fetched.batches[0]).append_time_ms if fetched.batches else None
