"""Producer identities: who may put idempotently, and which instance of a named producer is the newest."""

from __future__ import annotations

from streamkit.errors import InvalidRequest
from streamkit.metadata.catalog import Catalog
from streamkit.protocol.messages import NewProducer, ProducerGiven

_NAME_CHARACTERS_MAX = 256


async def give_producer(catalog: Catalog, message: NewProducer) -> ProducerGiven:
    """An id for one producer. The shards learn it from its first batch; the epoch fences elder instances there."""
    if len(message.name) > _NAME_CHARACTERS_MAX or not message.name.isprintable():
        raise InvalidRequest(
            f"a producer's name has at most {_NAME_CHARACTERS_MAX} printable characters, got {len(message.name)}",
            try_="choose a shorter name, or none", field="name", value=message.name[:80],
        )
    producer_id, epoch = await catalog.new_producer(message.name)
    return ProducerGiven(producer_id, epoch)
