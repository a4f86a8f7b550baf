"""One door to everything: `open("./data")` runs a node in this process, `connect(url)` uses one that runs.

    with streamkit.open("./data") as session:
        session.client.create_stream("orders", shards=2)
        with session.producer("orders") as producer:
            producer.put({"id": 1}, key="customer-7")

An embedded node is the node that `streamkit serve` runs, on a background event loop and without a port; its
directory can be served later, and the other way round. Server code is loaded by `open`, not by importing this.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from streamkit.client.pool import Connector
from streamkit.client.sync import Client
from streamkit.errors import Closed
from streamkit.runtime.real import LoopThread

if TYPE_CHECKING:
    from streamkit.consumer.consumer import Consumer
    from streamkit.consumer.reader import Reader
    from streamkit.node import Node
    from streamkit.producer.producer import Producer
    from streamkit.producer.settings import PutSettings

_STOP_SECONDS = 30.0


class Session:
    """Clients, producers, consumers and readers of one node. Close it, or use `with`.

    What is made here is for this process and its threads; close producers and stop consumers before the session,
    or they end with ConnectionFailed.
    """

    def __init__(self, where: str | Connector | None, *, node: Node | None = None) -> None:
        """where: an address, or how an embedded node is reached; None: as clients find it by themselves."""
        self._where = where
        self._node = node
        self._closed = False
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """For administration; made on first use, closed with the session."""
        self._check_open()
        if self._client is None:
            self._client = Client(self._where)
        return self._client

    def producer(self, stream: str | None = None, **options: Unpack[PutSettings]) -> Producer:
        """As `streamkit.Producer`, connected to this node."""
        from streamkit.producer.producer import Producer

        self._check_open()
        return Producer(stream, url=self._where, **options)

    def consumer(self, stream: str | builtins.list[str], **options: Any) -> Consumer:
        """As `streamkit.Consumer`, connected to this node."""
        from streamkit.consumer.consumer import Consumer

        self._check_open()
        return Consumer(stream, url=self._where, **options)

    def reader(self, stream: str, **options: Any) -> Reader:
        """As `streamkit.Reader`, connected to this node."""
        from streamkit.consumer.reader import Reader

        self._check_open()
        return Reader(stream, url=self._where, **options)

    def close(self) -> None:
        """Everything put is on disk, as its stream promises; an embedded node stops and unlocks its directory."""
        if self._closed:
            return
        self._closed = True
        if self._client is not None:
            self._client.close()
        thread = LoopThread.shared()
        if self._node is not None and thread.alive:
            thread.run(self._node.stop(_STOP_SECONDS))

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the session was closed", try_="open it again", what="session")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(data_dir: str, settings: Mapping[str, object] | None = None) -> Session:
    """A session on a node in this process that keeps its files in `data_dir`, made if it does not exist.

    settings: configuration by dotted key, as {"streams.auto_create": False}. Streams are created on first use unless
    that says otherwise. Raises DataDirectoryLocked when another process (or session) has the directory open,
    CorruptFile, InvalidConfig.
    """
    from streamkit.config import compose
    from streamkit.node import Node, NodeOptions
    from streamkit.runtime.real import real_runtime

    config = compose(flags={"streams.auto_create": True, **(settings or {})}).config
    thread = LoopThread.shared()

    async def start() -> Node:
        node = Node(config, real_runtime(), data_dir=data_dir, options=NodeOptions(listen=False))
        await node.start()
        return node

    node = thread.run(start())
    return Session(node.connect, node=node)


def connect(url: str | None = None) -> Session:
    """A session on a node that runs elsewhere; url: as `Client` takes it. Connects with the first request."""
    return Session(url)
