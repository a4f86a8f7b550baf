"""Carrying decided outputs out: every batch into its shard, whoever does it and how often.

A batch has the numbers it was decided with, so a shard that has it says so. A shard that was split or merged is closed,
and what it has then is final: what it lacks goes to its children. Whoever carries it there comes to the same batches
with the same numbers, because the lineage had nothing in the children before: parents first, in the order of ordinals,
cut anew from number 0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.errors import (
    SequenceGap,
    ShardClosed,
    ShardNotFound,
    StreamNotFound,
    Throttled,
    TimedOut,
    Unavailable,
    UnknownProducer,
)
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription
from streamkit.runtime.backoff import Backoff
from streamkit.transactions.outputs import Outputs, StreamOutputs
from streamkit.transactions.sealing import Sealable, batches_of, sealable

log = logging.getLogger("streamkit.transactions")

_GONE_TRIES = 600                          # descriptions without a shard: it is gone, and no news
_GAP_TRIES = 5                             # more gaps in a row than that, and the shard is believed
_PASSING = (Unavailable, TimedOut, Throttled, ShardNotFound, SequenceGap, UnknownProducer)
_AT_ONCE = 4                               # batches of one shard; fewer than it remembers of a producer


async def carry_out(client: AsyncClient, outputs: Outputs) -> dict[bytes, int]:
    """Returns when every record is stored: by shard that got records of another, the number that comes next there.

    Waits out whatever passes. What belongs to a stream that was deleted is dropped. Raises what no repeat can cure.
    """
    identity = outputs.producer_id, outputs.producer_epoch
    moved = await asyncio.gather(*(_Stream(client, identity, stream).carry_out() for stream in outputs.streams))
    return {shard: number for each in moved for shard, number in each.items()}


class _Stream:
    def __init__(self, client: AsyncClient, identity: tuple[int, int], outputs: StreamOutputs) -> None:
        self._client = client
        self._identity = identity
        self._outputs = outputs

    async def carry_out(self) -> dict[bytes, int]:
        try:
            return await self._carry_out()
        except StreamNotFound:
            log.warning("transaction.stream_gone stream=%s", self._outputs.stream)
            return {}

    async def _carry_out(self) -> dict[bytes, int]:
        left = await asyncio.gather(*(self._put_all(each.shard, each.batches) for each in self._outputs.shards))
        lacking = {each.shard: rest for each, rest in zip(self._outputs.shards, left, strict=True) if rest}
        return await self._move(lacking) if lacking else {}

    async def _move(self, lacking: dict[bytes, Sequence[bytes]]) -> dict[bytes, int]:
        """lacking: what closed shards do not have, by shard. To their children, and on to theirs."""
        numbers: dict[bytes, int] = {}
        stream = await self._describe(partial(_are_split, wanted=lacking))
        by_ordinal = {shard.ordinal: shard for shard in stream.shards}
        waiting = {shard.ordinal: lacking[shard.uuid] for shard in stream.shards if shard.uuid in lacking}
        records: dict[int, list[Sealable]] = {}
        while waiting or records:
            ordinal = min({*waiting, *records})
            if ordinal in records:
                uuid = by_ordinal[ordinal].uuid
                batches = tuple(batches_of(records.pop(ordinal), self._identity, 0, stream.map_version))
                numbers[uuid] = sum(len(Batch(batch)) for batch in batches)
                rest = await self._put_all(uuid, batches)
                if not rest:
                    continue
                stream = await self._describe(partial(_are_split, wanted={uuid}))
                by_ordinal = {shard.ordinal: shard for shard in stream.shards}
                waiting[ordinal] = rest
            children = [by_ordinal[child] for child in by_ordinal[ordinal].children]
            for batch in waiting.pop(ordinal):
                for record in Batch(batch):
                    child = _child_of(children, int.from_bytes(record.hash_key, "big"))
                    records.setdefault(child.ordinal, []).append(sealable(record))
        return numbers

    async def _put_all(self, uuid: bytes, batches: Sequence[bytes]) -> Sequence[bytes]:
        """Those that the shard does not have and, being closed, never will; none as a rule."""
        backoff = Backoff(self._client.runtime.random, 20, 2_000)
        at = gaps = 0
        if (shard := await self._find(uuid)) is None:
            return ()
        while at < len(batches):
            tries = batches[at : at + _AT_ONCE]
            answers = await asyncio.gather(
                *(self._client.put_batch(shard, batch) for batch in tries), return_exceptions=True
            )
            refusal = next((answer for answer in answers if isinstance(answer, BaseException)), None)
            if refusal is None:
                at += len(tries)
                gaps = 0
                backoff.reset()
                continue
            at += next(i for i, answer in enumerate(answers) if answer is refusal)
            if isinstance(refusal, ShardClosed):
                return batches[at:]
            gaps = gaps + 1 if isinstance(refusal, SequenceGap | UnknownProducer) else 0
            if gaps > _GAP_TRIES:
                # It lost what it had acknowledged, as a weaker durability allows, or knows the producer no more.
                log.error("transaction.numbers_lost stream=%s shard=%s error=%s", self._outputs.stream, uuid.hex(),
                          refusal)
                batches, at, gaps = await self._renamed(batches[at:]), 0, 0
                continue
            if not isinstance(refusal, _PASSING):
                raise refusal
            log.info("transaction.retrying stream=%s shard=%s error=%s", self._outputs.stream, uuid.hex(), refusal)
            await asyncio.sleep(backoff.next_ms() / 1000)
            if (found := await self._find(uuid)) is None:
                return ()
            shard = found
        return ()

    async def _renamed(self, batches: Sequence[bytes]) -> list[bytes]:
        given = await self._client.new_producer()
        records = [sealable(record) for batch in batches for record in Batch(batch)]
        return list(batches_of(records, (given.producer_id, given.producer_epoch), 0, 0))

    async def _find(self, uuid: bytes) -> Shard | None:
        """None: retention has removed it, with whatever it had been given."""
        stream = await self._describe(lambda shards: uuid in shards, refresh=False, tries_max=_GONE_TRIES)
        shard = next((shard for shard in stream.shards if shard.uuid == uuid), None)
        if shard is None:
            log.error("transaction.shard_gone stream=%s shard=%s", self._outputs.stream, uuid.hex())
        return shard

    async def _describe(
        self, is_wanted: Callable[[Mapping[bytes, Shard]], bool], *, refresh: bool = True, tries_max: int = 0
    ) -> StreamDescription:
        """Asks until what comes is wanted, or was not that many times. Raises StreamNotFound."""
        backoff = Backoff(self._client.runtime.random, 20, 1_000)
        unwanted = 0
        while True:
            try:
                stream = await self._client.stream(self._outputs.stream, refresh=refresh)
            except (Unavailable, TimedOut) as error:
                log.info("transaction.asking_again stream=%s error=%s", self._outputs.stream, error)
            else:
                if stream.created_ms != self._outputs.created_ms:
                    raise StreamNotFound(f"stream {stream.name} was made anew", stream=stream.name, near=None)
                unwanted += 1
                if is_wanted({shard.uuid: shard for shard in stream.shards}) or unwanted == tries_max:
                    return stream
            refresh = True
            await asyncio.sleep(backoff.next_ms() / 1000)


def _are_split(shards: Mapping[bytes, Shard], wanted: Collection[bytes]) -> bool:
    return all(uuid in shards and shards[uuid].children for uuid in wanted)


def _child_of(children: Sequence[Shard], number: int) -> Shard:
    return next(child for child in children if child.hash_start <= number < child.hash_end)
