"""Producer identities: who may put idempotently, and which instance of a named producer is the newest."""

from __future__ import annotations

from streamkit.broker.shard_server import ShardServer
from streamkit.errors import InvalidRequest, ProducerFenced
from streamkit.metadata.catalog import Catalog
from streamkit.protocol.messages import NewProducer, OpenProducer, ProducerGiven, ProducerOpened

_NAME_CHARACTERS_MAX = 256
_INSTANCE_BYTES_MAX = 64


async def give_producer(catalog: Catalog, message: NewProducer) -> ProducerGiven:
    """An id for one producer. The shards learn it from its first batch; the epoch fences elder instances there."""
    if len(message.name) > _NAME_CHARACTERS_MAX or not message.name.isprintable():
        raise InvalidRequest(
            f"a producer's name has at most {_NAME_CHARACTERS_MAX} printable characters, got {len(message.name)}",
            try_="choose a shorter name, or none", field="name", value=message.name[:80],
        )
    if len(message.instance) > _INSTANCE_BYTES_MAX:
        raise InvalidRequest(f"an instance has at most {_INSTANCE_BYTES_MAX} bytes, got {len(message.instance)}",
                             try_="draw 16 bytes", field="instance")  # fmt: skip
    if message.renew:
        return ProducerGiven(*await catalog.renew_producer(message.name, message.instance))
    return ProducerGiven(*await catalog.new_producer(message.name, message.instance))


async def open_producer(catalog: Catalog, shard: ShardServer, message: OpenProducer, now_ms: int) -> ProducerOpened:
    """Whoever opened the name before is kept out of this shard, for good.

    The store is asked first: a shard that came of a split knows nobody yet, and must not take an elder for the newest.
    """
    if not await catalog.holds_name(message.name, message.instance):
        raise ProducerFenced(
            f'"{message.name[:80]}" was opened again, by a newer instance of this producer', try_="stop this one",
            producer_id=message.producer_id, epoch=message.producer_epoch, newest=None,
        )  # fmt: skip
    following = await shard.open_producer(message.producer_id, message.producer_epoch, now_ms)
    return ProducerOpened(following, shard.log.closing is not None)
