"""A real node with services of the gateway on a real listener, in a thread of its own, and boto3 clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
from botocore.config import Config

from streamkit.client.client import AsyncClient
from streamkit.gateway.app import Gateway
from streamkit.gateway.calls import Service
from streamkit.http.listener import HttpListener
from streamkit.node import Node, NodeOptions
from streamkit.runtime.real import real_runtime
from streamkit.security.credentials import Authenticator
from tests.broker.conftest import SMALL, config

Open = Callable[[AsyncClient], list[Service]]


class Face:
    """address: "host:port" of the listener. run(coroutine) carries it out on the node's loop."""

    def __init__(self, directory: str, open_services: Open) -> None:
        self._directory = directory
        self._open = open_services
        self.loop = asyncio.new_event_loop()
        self.address = ""
        self.native = ""
        self.client: AsyncClient
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="face")

    def _main(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            self.loop.close()

    async def _serve(self) -> None:
        runtime = real_runtime()
        async with contextlib.AsyncExitStack() as stack:
            node = Node(config(), runtime, data_dir=self._directory, options=NodeOptions(storage=SMALL))
            await node.start()
            stack.push_async_callback(node.stop, 1)
            self.native = node.addresses.native
            self.client = await stack.enter_async_context(AsyncClient(self.native))
            gateway = Gateway(self._open(self.client), Authenticator(), runtime.clock, runtime.random)
            listener = await HttpListener.open(runtime.network, "127.0.0.1:0", gateway.handle)
            stack.push_async_callback(listener.close)
            self.address = listener.address
            self._ready.set()
            await self._stop.wait()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def boto(self, service: str, *, region: str = "us-east-1", retries: int = 0, **options: Any) -> Any:
        return boto3.client(
            service, endpoint_url=f"http://{self.address}", region_name=region, aws_access_key_id="AK",
            aws_secret_access_key="secret",
            config=Config(retries={"total_max_attempts": retries + 1}, max_pool_connections=40, **options),
        )  # fmt: skip


@contextlib.contextmanager
def serving(directory: str, open_services: Open) -> Iterator[Face]:
    face = Face(directory, open_services)
    face._thread.start()
    face._ready.wait(60)
    if face._failure is not None:
        raise face._failure
    try:
        yield face
    finally:
        face.loop.call_soon_threadsafe(face._stop.set)
        face._thread.join(60)
    if face._failure is not None:
        raise face._failure
