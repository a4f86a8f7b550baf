"""Damaged records are fetched from another copy; copies that should be alike are compared.

    found at the start, by a read, or by the scrubber ▸ another copy that has the range ▸ written, read back, forgotten
    it does not fit where the damage is               ▸ the whole segment from that copy, in the place of ours
    a leader's, not committed, and nobody has it      ▸ another leads: what cannot be read cannot be carried on
    a leader, one shard after the other               ▸ sums of the same range at every copy ▸ a difference is reported

Nothing is ever removed because it looks odd. A damaged range that nobody else can give stays as it is, and the copy
does not vote. Run by the cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from streamkit._core.batch import read_header
from streamkit.broker.copies import Copies
from streamkit.broker.copy import Copy
from streamkit.errors import StreamkitError
from streamkit.protocol.peers import Digest, DigestRange
from streamkit.replication.agreement import epoch_at
from streamkit.runtime.interfaces import Buffer
from streamkit.storage import Damage, ShardLog

logger = logging.getLogger("streamkit.broker")

_LOOK_SECONDS = 1.0
_LOOK_COPIES = 500                 # at a time: idle copies are many
_COMPARE_SECONDS = 10.0            # between two shards that are compared
_COMPARE_RECORDS = 1 << 20         # of one range; its borders are multiples, so that the same is compared again
_READ_BYTES = 4 * 1024 * 1024
_TIMEOUT_MS = 10_000


class Repair:
    """repaired, unrepaired: damaged ranges. differences: ranges in which two copies were not alike."""

    def __init__(self, copies: Copies) -> None:
        self.repaired = 0
        self.differences = 0
        self._copies = copies
        self._hopeless: set[tuple[bytes, Damage]] = set()      # reported already
        self._verified: dict[ShardLog, None] = {}
        self._compared = 0
        self._turn = asyncio.Lock()                    # one copy is mended at a time
        copies.mend = self.mend

    @property
    def unrepaired(self) -> int:
        return len(self._hopeless)

    async def run(self) -> None:
        """For ever: mend what is damaged."""
        while True:
            copies = list(self._copies.copies.values())
            self._verified = {log: None for log in self._verified if not log.dropped}
            self._hopeless = {(uuid, damage) for uuid, damage in self._hopeless if uuid in self._copies.copies}
            for start in range(0, len(copies), _LOOK_COPIES):
                for copy in copies[start : start + _LOOK_COPIES]:
                    if not copy.closed:
                        await self._look(copy)
                await asyncio.sleep(_LOOK_SECONDS)
            if not copies:
                await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, copy: Copy) -> None:
        if copy.log.facts.damaged and copy.log not in self._verified and not await self._verify(copy):
            return
        if copy.log.damages:
            copy.damaged()
        elif not copy.follower.whole:
            copy.mended()                      # what was damaged was cut off, or removed by retention
        else:
            copy.confirm()
        if copy.log.damages:
            await self.mend(copy)
            if copy.server is not None and any(each.sequence >= copy.high_watermark for each in copy.log.damages):
                await self._abdicate(copy)

    async def mend(self, copy: Copy) -> None:
        """What is damaged of it and can be had from another copy."""
        async with self._turn:
            for damage in list(copy.log.damages):
                await self._mend(copy, damage)

    async def _verify(self, copy: Copy) -> bool:
        """It was damaged before this process began: where, only reading tells. False: it cannot be read now."""
        try:
            await copy.log.verify()
        except (StreamkitError, OSError) as error:
            logger.info("repair.not_verified", extra={"facts": {"shard": copy.uuid.hex(), "error": str(error)}})
            return False
        self._verified[copy.log] = None
        return True

    async def _mend(self, copy: Copy, damage: Damage) -> None:
        for member in copy.replica_set.copies:
            if member.node == self._copies.node or not self._copies.peers.connected(member.node):
                continue
            try:
                if await self._mend_from(copy, damage, member.node):
                    self.repaired += 1
                    self._hopeless.discard((copy.uuid, damage))
                    logger.info("segment.repaired", extra={"facts": {
                        "path": damage.path, "sequence": damage.sequence, "next_sequence": damage.next_sequence,
                        "from": member.node,
                    }})  # fmt: skip
                    if not copy.log.damages:
                        copy.mended()
                    return
            except StreamkitError as error:
                logger.debug("repair.not_from node=%s error=%s", member.node, error)
        if (copy.uuid, damage) not in self._hopeless:
            self._hopeless.add((copy.uuid, damage))
            logger.error("segment.unrepaired", extra={"facts": {
                "path": damage.path, "sequence": damage.sequence, "next_sequence": damage.next_sequence,
            }})  # fmt: skip

    async def _abdicate(self, copy: Copy) -> None:
        """Nothing behind that damage is ever committed by this leader; the next one leaves it out, see `Copies`."""
        entry, us = copy.entry, self._copies.node
        if copy.is_standing or entry.target_leader not in ("", us):
            return
        ends: dict[str, int] = {}
        for member in copy.replica_set.members:
            if member.node == us or not self._copies.peers.connected(member.node):
                continue
            if (said := await self._copies.voter(member, copy.uuid)) is not None:
                ends[member.node] = said.log_end
        if ends and copy.server is not None and copy.entry is entry:
            heir = max(ends, key=lambda node: ends[node])
            logger.warning("shard.abdicated", extra={"facts": {"shard": copy.uuid.hex(), "to": heir}})
            await self._copies.swap(copy.uuid, msgspec.structs.replace(entry, target_leader=heir))

    async def _mend_from(self, copy: Copy, damage: Damage, node: str) -> bool:
        directory, log = self._copies.directory, copy.log
        batches = await self._fetch(copy, damage.sequence, damage.next_sequence, node)
        if not batches:
            return False
        if await directory.repair(log, damage, batches):
            return True
        # What follows lies elsewhere than it should: a write went astray, and others went on behind it.
        base, end = await directory.close_segment(log, damage.sequence)
        batches = await self._fetch(copy, base, end, node)
        return bool(batches) and await directory.rewrite(log, base, batches)

    async def _fetch(self, copy: Copy, start: int, end: int, node: str) -> list[Buffer]:
        """Whole batches that cover the range, as that node's copy holds them; empty when it does not have them all,

        or what it has may be another leader's that was never committed.
        """
        found: list[Buffer] = []
        at = start
        while at < end:
            fetched = await self._copies.peers.read_log(node, copy.uuid, at, _READ_BYTES, _TIMEOUT_MS)
            if not fetched.batches or fetched.next_sequence <= at:
                return []
            if fetched.high_watermark < fetched.next_sequence and not _is_same(copy.log, fetched.batches):
                return []
            found += fetched.batches
            at = fetched.next_sequence
        return found

    # -- comparing -----------------------------------------------------------------------------------------

    async def compare(self) -> None:
        """For ever: one range of one shard that this node leads, at every copy."""
        while True:
            await asyncio.sleep(_COMPARE_SECONDS)
            led = [copy for copy in self._copies.copies.values() if copy.server is not None]
            if led:
                self._compared += 1
                copy = led[self._compared % len(led)]
                try:
                    await self.compare_once(copy, self._compared // len(led))
                except StreamkitError as error:            # its own log cannot be read: `run` sees to that
                    logger.debug("replicas.not_compared shard=%s error=%s", copy.uuid.hex(), error)

    async def compare_once(self, copy: Copy, turn: int) -> bool:
        """Whether every copy that answers holds that range alike. turn: chooses the range."""
        first, last = copy.log.log_start // _COMPARE_RECORDS, copy.high_watermark // _COMPARE_RECORDS
        block = first + turn % (last - first + 1)
        start = max(copy.log.log_start, block * _COMPARE_RECORDS)
        feeds = copy.feeds()
        ends = [feed.matched for feed in feeds.values() if feed.matched is not None]
        end = min([copy.high_watermark, (block + 1) * _COMPARE_RECORDS, *ends])
        if start >= end:
            return True
        crc, batches, summed_to = await copy.log.digest(start, end)
        alike = True
        for node in feeds:
            try:
                theirs = await self._copies.peers.ask(node, DigestRange(copy.uuid, start, summed_to), _TIMEOUT_MS)
            except StreamkitError:
                continue
            if not isinstance(theirs, Digest) or theirs.end != summed_to:
                continue                       # it has not got that far, or begins later
            if (theirs.crc, theirs.batches) != (crc, batches):
                alike = False
                self.differences += 1
                logger.error("replicas.differ", extra={"facts": {
                    "shard": copy.uuid.hex(), "node": node, "start": start, "end": summed_to,
                }})  # fmt: skip
        return alike


def _is_same(log: ShardLog, batches: Sequence[Buffer]) -> bool:
    """Whether our log held these, as far as its epochs tell: two logs with one epoch at a place are alike there."""
    headers = map(read_header, batches)
    return all(epoch_at(log.epochs, header.base_sequence) == header.epoch for header in headers)
