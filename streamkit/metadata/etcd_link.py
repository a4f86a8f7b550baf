"""Calls to an etcd cluster: one channel an endpoint, a time limit on each call, and a plain word on what became of it.

A call goes to one endpoint, and waits first until the channel to it is up: what fails until then was never sent, so it
is "not_done", and the next endpoint is tried within the same limit. Once a change was sent, every failure but a plain
refusal leaves its outcome "unknown", and it is not sent again here: `certainty` does that, knowing what to look for.
Messages and stubs are aetcd's; its client is not used, see docs/decisions/0054-etcd-through-its-own-stubs.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from streamkit.errors import StoreUnavailable

_CONNECT_SECONDS = 1.0             # for one endpoint, before the next is tried
_OPTIONS = [
    ("grpc.enable_retries", 0),                            # a change is sent once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),                    # a watch on a host that was cut off ends
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
]
_REFUSALS = {
    # The server has looked at the request and turned it down: nothing was changed.
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.OUT_OF_RANGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM texts. certificate, key: this node's own; b"": etcd asks for none."""

    ca: bytes
    certificate: bytes = b""
    key: bytes = b""


class _Endpoint:
    def __init__(self, address: str, tls: Tls | None) -> None:
        self.address = address
        if tls is None:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key or None, tls.certificate or None)
            self.channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        stubs = (rpc.KVStub(self.channel), rpc.LeaseStub(self.channel), rpc.WatchStub(self.channel))
        self.kv, self.lease, self.watching = stubs
        self.watches: list[Any] = []           # calls that stand open

    async def up(self, seconds: float) -> bool:
        """Whether it is there within that time."""
        if self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.channel.channel_ready()
                return True
        return False


class EtcdLink:
    """timeout_ms: longest that any call takes, all endpoints together."""

    def __init__(self, addresses: Sequence[str], *, tls: Tls | None, timeout_ms: int) -> None:
        assert addresses, "an etcd cluster has an address"
        self.addresses = tuple(addresses)
        self.timeout_ms = timeout_ms
        self._endpoints = [_Endpoint(address, tls) for address in addresses]
        self._at = 0                           # the endpoint that answered last

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.channel.close()

    async def read(self, request: Any) -> Any:
        """A range, from whichever endpoint answers."""
        deadline = self._deadline()
        for _ in self._endpoints:
            endpoint = await self._connected(deadline)
            try:
                return await endpoint.kv.Range(request, timeout=self._share(deadline))
            except grpc.aio.AioRpcError as error:
                self._next(endpoint)
                failed = error
                if error.code() in _REFUSALS:
                    break
        raise self._unavailable(failed, "not_done") from failed

    async def change(self, request: Any) -> Any:
        """A transaction."""
        return await self._once("kv", "Txn", request)

    async def grant(self, ttl_seconds: int) -> int:
        """A lease's id. One that nobody hears of ends by itself."""
        try:
            granted = await self._once("lease", "LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_seconds))
        except StoreUnavailable as error:
            raise StoreUnavailable(str(error), try_=error.try_, **error.facts | {"outcome": "not_done"}) from error
        return int(granted.ID)

    async def revoke(self, lease: int) -> None:
        await self._once("lease", "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))

    async def keep_alive(self, lease: int) -> bool:
        """Another TTL for the lease; False when it has expired."""
        deadline = self._deadline()
        endpoint = await self._connected(deadline)

        async def one() -> AsyncIterator[Any]:
            yield rpc.LeaseKeepAliveRequest(ID=lease)

        call = endpoint.lease.LeaseKeepAlive(one(), timeout=self._left(deadline))
        try:
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            self._next(endpoint)
            raise self._unavailable(error, "unknown") from error
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            self._next(endpoint)
            raise self._unavailable(None, "unknown")
        return int(answer.TTL) > 0

    async def watch(self, create: Any) -> AsyncGenerator[Any, None]:
        """The responses of one watch. Ends in StoreUnavailable when the connection or etcd's own majority is lost."""
        endpoint = await self._connected(self._deadline())

        async def one() -> AsyncIterator[Any]:
            yield rpc.WatchRequest(create_request=create)
            await asyncio.get_running_loop().create_future()       # the stream stays open until it is cancelled

        # hasleader: an etcd that has lost its majority ends the watch, instead of standing still.
        call = endpoint.watching.Watch(one(), metadata=(("hasleader", "true"),))
        endpoint.watches.append(call)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            self._next(endpoint)
            raise self._unavailable(error, "not_done") from error
        except asyncio.CancelledError as error:
            if call in endpoint.watches:
                raise                                      # the caller's own; else `_next` has ended the call
            raise self._unavailable(None, "not_done") from error
        finally:
            if call in endpoint.watches:
                endpoint.watches.remove(call)
            call.cancel()

    # -- inside ----------------------------------------------------------------------------------------------

    async def _once(self, service: str, method: str, request: Any) -> Any:
        deadline = self._deadline()
        endpoint = await self._connected(deadline)
        try:
            return await getattr(getattr(endpoint, service), method)(request, timeout=self._left(deadline))
        except grpc.aio.AioRpcError as error:
            self._next(endpoint)
            outcome = "not_done" if error.code() in _REFUSALS else "unknown"
            raise self._unavailable(error, outcome) from error

    async def _connected(self, deadline: float) -> _Endpoint:
        """The first endpoint that is up, beginning with the one that answered last. Raises StoreUnavailable."""
        for _ in self._endpoints:
            endpoint = self._endpoints[self._at]
            if await endpoint.up(min(_CONNECT_SECONDS, self._share(deadline))):
                return endpoint
            self._next(endpoint)
        raise self._unavailable(None, "not_done")

    def _next(self, endpoint: _Endpoint) -> None:
        """That one has failed. Its watches go elsewhere, too: one on a process that was stopped only stands still."""
        watches, endpoint.watches = endpoint.watches, []
        for call in watches:
            call.cancel()
        if self._endpoints[self._at] is endpoint:
            self._at = (self._at + 1) % len(self._endpoints)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.timeout_ms / 1000

    def _left(self, deadline: float) -> float:
        return max(0.01, deadline - asyncio.get_running_loop().time())

    def _share(self, deadline: float) -> float:
        """Of what is left, so that every endpoint gets its turn."""
        return self._left(deadline) if len(self._endpoints) == 1 else max(0.05, self._left(deadline) / 2)

    def _unavailable(self, error: grpc.aio.AioRpcError | None, outcome: str) -> StoreUnavailable:
        names = ", ".join(self.addresses)
        why = "nobody answers there" if error is None else (error.details() or error.code().name.lower())[:200]
        return StoreUnavailable(
            f"etcd at {names} cannot be used: {why}",
            try_="look whether etcd runs and has its majority, and check the addresses in --cluster; "
            "records go on being stored meanwhile", store=names, outcome=outcome,
        )
