"""A node's HTTP faces, plugged together for `node`: the Kinesis API, and what the KCL wants beside it.

Every service is a guest of a client of its own, connected within the process where the node is alone. They are loaded
and opened by the first request: a node that nobody asks in this way pays nothing for them.
Read `Faces.open`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import tomllib
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from streamkit.client.client import AsyncClient
from streamkit.config import KinesisSection
from streamkit.errors import InvalidConfig, StreamkitError
from streamkit.http.exchange import HttpConfig, Request, Response
from streamkit.http.listener import HttpListener
from streamkit.http.tls import server_context
from streamkit.observability.buckets import LATENCY_BOUNDS
from streamkit.runtime.interfaces import Disk, TlsContext
from streamkit.security.credentials import Authenticator, Key
from streamkit.security.policy import is_expected_host, is_foreign_page

if TYPE_CHECKING:
    from streamkit.gateway.app import Gateway
    from streamkit.gateway.cloudwatch import Registry
    from streamkit.gateway.kinesis.subscriptions import Subscriptions
    from streamkit.node import Node
    from streamkit.observability.metrics import FaceNumbers

logger = logging.getLogger("streamkit.node")

_KEYS_BYTES_MAX = 1 << 20
_REPORTED_MAX = 1_000                      # series that a scrape shows


class _Answers:
    """Counts what the gateway answers. For a gateway's `observer`."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.slower: dict[str, list[int]] = {}         # operation → one a bucket
        self.total_ms: Counter[str] = Counter()

    def answered(self, operation: str, status: int, error: str, elapsed_ms: int) -> None:
        self.counts[operation, error or ("ok" if status < 400 else str(status))] += 1
        buckets = self.slower.get(operation)
        if buckets is None:
            buckets = self.slower[operation] = [0] * (len(LATENCY_BOUNDS) + 1)
        buckets[bisect_left(LATENCY_BOUNDS, elapsed_ms / 1_000)] += 1
        self.total_ms[operation] += elapsed_ms


class Faces:
    """Open with `await Faces.open(node)`; `close` ends listeners, services and their client."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._authenticator = authenticator(node.config.kinesis, node.runtime.disk)
        self._origins = frozenset(node.config.kinesis.origins.split())
        self._answers = _Answers()
        self._registry: Registry | None = None
        self._subscriptions: Subscriptions | None = None
        self._gateway: Gateway | None = None
        self._opening = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._listeners: list[HttpListener] = []
        self.http = ""
        self.https = ""

    @classmethod
    async def open(cls, node: Node) -> Faces:
        """Listen. Raises InvalidConfig, ConnectionFailed."""
        faces = cls(node)
        listen = node.config.listen
        try:
            if listen.http.enabled:
                faces.http = await faces._listen("http", f"{listen.host}:{listen.http.port}")
            if listen.https.certificate_file:
                tls = server_context(listen.https.certificate_file, listen.https.key_file)
                address = f"{listen.https.host or listen.host}:{listen.https.port}"
                faces.https = await faces._listen("https", address, tls)
        except BaseException:
            await faces.close()
            raise
        return faces

    async def _listen(self, name: str, address: str, tls: TlsContext | None = None) -> str:
        section = self._node.config.listen.http
        config = HttpConfig(
            connections_max=section.connections_max, buffered_bytes_max=section.buffered_bytes_max,
            answers_bytes_max=section.buffered_bytes_max,
        )
        opened = await HttpListener.open(self._node.runtime.network, address, self._answer, config, tls)
        self._listeners.append(opened)
        logger.info("listener.open", extra={"facts": {"name": name, "address": opened.address}})
        return opened.address

    async def drain(self, seconds: float) -> None:
        """No new connections and requests; what is under way is answered, subscriptions end."""
        if self._subscriptions is not None:
            self._subscriptions.end()
        await asyncio.gather(*(listener.drain(seconds) for listener in self._listeners))

    async def close(self) -> None:
        for listener in self._listeners:
            await listener.close()
        await self._stack.aclose()

    def numbers(self) -> FaceNumbers:
        from streamkit.observability.metrics import FaceNumbers, Latency, ReportedNumbers

        series = itertools.islice(self._registry.series(), _REPORTED_MAX) if self._registry is not None else ()
        return FaceNumbers(
            connections=sum(len(listener.connections) for listener in self._listeners),
            rejected=sum(listener.rejected for listener in self._listeners),
            subscriptions=self._subscriptions.count if self._subscriptions is not None else 0,
            answers=dict(self._answers.counts),
            latency={
                operation: Latency([*buckets], self._answers.total_ms[operation] / 1_000)
                for operation, buckets in self._answers.slower.items()
            },
            reported=[
                ReportedNumbers(
                    namespace=each.name.namespace, metric=each.name.metric,
                    dimensions=",".join(f"{name}={value}" for name, value in each.name.dimensions),
                    value=each.last.mean,
                )
                for each in series
            ],
        )

    async def _answer(self, request: Request) -> Response:
        if self._authenticator.mode == "off":
            # Nobody needs a key, so nothing but this keeps web pages from asking in their visitors' name.
            listen = self._node.config.listen
            if not is_expected_host(request.headers.get("host", ""), listen.host, listen.advertised):
                return Response(421)
            if is_foreign_page(request.headers, self._origins):
                return Response(403)
        if self._gateway is None:
            async with self._opening:
                if self._gateway is None:
                    try:
                        self._gateway = await self._open_services()
                    except StreamkitError as error:
                        # The store of a cluster that starts, for one: a client tries again.
                        logger.warning("faces.unavailable", extra={"facts": {"error": str(error)}})
                        return Response(503)
        return await self._gateway.handle(request)

    async def _open_services(self) -> Gateway:
        from streamkit.gateway.app import Gateway
        from streamkit.gateway.cloudwatch import Registry, open_cloudwatch
        from streamkit.gateway.dynamodb.service import open_dynamodb
        from streamkit.gateway.kinesis.service import Kinesis

        node, clock, random = self._node, self._node.runtime.clock, self._node.runtime.random
        client, config = client_of(node), kinesis_config(node.config.kinesis, clustered=node.is_clustered)
        try:
            kinesis = await Kinesis.open(client, clock, config)
        except BaseException:
            await client.close()
            raise
        self._stack.push_async_callback(client.close)
        self._stack.push_async_callback(kinesis.close)
        self._subscriptions, self._registry = kinesis.subscriptions, Registry()
        services = [kinesis.service, open_dynamodb(client, clock, random), open_cloudwatch(clock, self._registry)]
        return Gateway(services, self._authenticator, clock, random, self._answers)


def client_of(node: Node) -> AsyncClient:
    """Asks a node that is alone within this process; in a cluster others lead shards, and are asked where they are."""
    return AsyncClient(node.addresses.native if node.is_clustered else node.connect, node.runtime)


def kinesis_config(section: KinesisSection, *, clustered: bool = False) -> Any:
    from streamkit.gateway.kinesis.config import AWS_LIMITS, KinesisConfig, Limits

    return KinesisConfig(
        account=section.account, region=section.region, retention_hours=section.retention_hours,
        limits=AWS_LIMITS if section.limits == "aws" else Limits(), put_throttle=section.put_throttle,
        lag_seconds=1.0 if clustered else 0.0,
    )


class _KeyEntry(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    secret: str
    account: str = ""
    token: str = ""
    permissions: tuple[str, ...] = ("read", "write", "admin")


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    key: list[_KeyEntry]


def authenticator(section: KinesisSection, disk: Disk) -> Authenticator:
    """From the file of keys: [[key]] tables of id, secret and perhaps account, token, permissions.

    Raises InvalidConfig.
    """
    keys: list[Key] = []
    if section.keys_file:
        try:
            file = disk.open(section.keys_file)
            try:
                text = file.read(_KEYS_BYTES_MAX, 0).decode()
            finally:
                file.close()
            found = msgspec.convert(tomllib.loads(text), _KeyFile)
        except (OSError, ValueError, StreamkitError) as error:
            raise InvalidConfig(
                f"the keys in {section.keys_file} cannot be read: {error}",
                try_="write a TOML file of [[key]] tables with id, secret and, if you like, account and permissions",
                file=section.keys_file, line=0, key="kinesis.keys_file", value=section.keys_file,
            ) from error
        keys = [
            Key(
                key_id=each.id, secret=each.secret, account=each.account, token=each.token,
                permissions=frozenset(each.permissions),
            )
            for each in found.key
        ]
    return Authenticator(keys, account=section.account, region=section.region)
