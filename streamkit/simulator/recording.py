"""What every client of a run shares: the stream, how patient clients are, and a client that the oracle listens to."""

from __future__ import annotations

import asyncio

from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.errors import NotFound, StreamkitError
from streamkit.model.stream import StreamDescription
from streamkit.protocol import messages as m
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.oracle import History

STREAM = "orders"
APPLICATION = "billing"
CLIENT = ClientConfig(connect_timeout_ms=1_000, request_timeout_ms=2_000, reconnect_first_ms=20, reconnect_most_ms=200)


class RecordingClient(AsyncClient):
    """The shipped client; what matters to the oracle is written down as it is answered."""

    def __init__(self, name: str, address: str, runtime: Runtime, history: History) -> None:
        super().__init__(address, runtime, config=CLIENT)
        self.name = name
        self.history = history

    async def call(self, message: m.Message, *, timeout_ms: int | None = None) -> m.Message:
        asked, sent_seconds = self.history.tick(), asyncio.get_running_loop().time()
        answer = await super().call(message, timeout_ms=timeout_ms)
        if isinstance(answer, m.Membership):
            self.history.answered(self.name, sent_seconds)
            self.history.granted(self.name, answer.granted)
        elif isinstance(message, m.Checkpoint) and isinstance(answer, m.Checkpointed):
            self.history.checkpointed(self.name, asked, message, answer)
        elif isinstance(message, m.CommitTransaction) and isinstance(answer, m.Checkpointed):
            one = m.Checkpoint(message.application, message.worker, (message.item,))
            self.history.checkpointed(self.name, asked, one, answer)
        elif isinstance(message, m.NewProducer) and isinstance(answer, m.ProducerGiven) and not message.renew:
            self.history.given[self.name] = (answer.producer_id, answer.producer_epoch)
        return answer


async def find_stream(client: AsyncClient, name: str = STREAM) -> StreamDescription:
    while True:
        try:
            return await client.stream(name, refresh=name != STREAM)
        except NotFound:
            raise
        except StreamkitError:
            await asyncio.sleep(0.05)
