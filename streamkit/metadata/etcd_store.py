"""The store in etcd: for several hosts.

    <prefix>/<key>     a key's revision is etcd's mod_revision of it; a registration is a key under a lease of its own

A compare-and-swap is one transaction: every mod_revision is compared (0: there is no such key), then all are written,
or none. Following lists all keys under a prefix as of one revision, then watches from the next; a watch that breaks
goes on where it was, and when etcd has compacted what came after, everything is listed again.
Calls, time limits and endpoints are in `etcd_link.py`. Read `EtcdStore._follow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from streamkit.errors import InvalidConfig, StoreUnavailable
from streamkit.metadata.store import Change, Entry, Listing, Swap
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Runtime

if TYPE_CHECKING:
    from streamkit.metadata.stores import Certificates

try:
    from aetcd import rpc

    from streamkit.metadata.etcd_link import EtcdLink, Tls
except ImportError as missing:
    raise InvalidConfig(
        f"etcd needs a library that is not installed: {missing.name}", try_="pip install 'streamkit[etcd]'",
        file="", line=0, key="cluster.url", value="etcd://",
    ) from missing

_log = logging.getLogger("streamkit.metadata")
TIMEOUT_MS = 2_000
OPERATIONS_MAX = 128               # etcd's own bound, --max-txn-ops
_PAGE_KEYS = 1_000
_PREFIX = "streamkit"


class _Compacted(Exception):
    """What came after the revision that was seen last is forgotten."""


class EtcdStore:
    """Open with `await EtcdStore.open(addresses, runtime, prefix=…)`. addresses: "host:port" of etcd's members."""

    operations_max = OPERATIONS_MAX

    def __init__(self, link: EtcdLink, runtime: Runtime, prefix: str) -> None:
        self.prefix = f"{prefix or _PREFIX}/"
        self._link = link
        self._runtime = runtime
        self._revision = 0             # the newest that any answer has named; where a new watch starts
        self._closed = False

    @classmethod
    async def open(
        cls, addresses: Sequence[str], runtime: Runtime, *, prefix: str = _PREFIX,
        certificates: Certificates | None = None, timeout_ms: int = TIMEOUT_MS,
    ) -> EtcdStore:
        """Raises StoreUnavailable when nobody answers, InvalidConfig when a certificate cannot be read."""
        link = EtcdLink(addresses, tls=_tls(certificates, runtime), timeout_ms=timeout_ms)
        store = cls(link, runtime, prefix)
        try:
            await store.read("cluster/id")
        except BaseException:
            await link.close()
            raise
        return store

    async def close(self) -> None:
        self._closed = True
        await self._link.close()

    async def read(self, key: str) -> tuple[bytes | None, int]:
        answer = await self._link.read(rpc.RangeRequest(key=self._key(key)))
        self._saw(answer)
        if not answer.kvs:
            return None, 0
        return answer.kvs[0].value, int(answer.kvs[0].mod_revision)

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        return await self.compare_and_swap_many((Swap(key, revision, value),))

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        return await self._swap(swaps, 0)

    async def list(self, prefix: str, *, after: str = "", count_max: int | None = None) -> list[Entry]:
        return [*(await self._listing(prefix, after, count_max)).entries]

    async def register(self, key: str, value: bytes, ttl_ms: int) -> EtcdRegistration | None:
        """etcd counts leases in seconds; two are the least it grants."""
        lease = await self._link.grant(max(1, -(-ttl_ms // 1000)))
        revision = await self._swap((Swap(key, 0, value),), lease)
        if revision is None:
            await self.revoke(lease)
            return None
        return EtcdRegistration(self, key, revision, lease)

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        return self._watch(prefix, self._revision)

    async def _watch(self, prefix: str, seen: int) -> AsyncGenerator[Change, None]:
        async with contextlib.aclosing(self._follow(prefix, seen)) as all_news:
            async for news in all_news:
                for change in (news,) if isinstance(news, Change) else (Change(*entry) for entry in news.entries):
                    yield change

    def follow(self, prefix: str) -> AsyncGenerator[Listing | Change, None]:
        return self._follow(prefix, None)

    # -- registrations -----------------------------------------------------------------------------------------

    async def renew(self, key: str, revision: int, lease: int) -> bool:
        if not await self._link.keep_alive(lease):
            return False
        return (await self.read(key))[1] == revision

    async def update(self, key: str, revision: int, value: bytes, lease: int) -> int | None:
        return await self._swap((Swap(key, revision, value),), lease)

    async def revoke(self, lease: int) -> None:
        """Sooner than it would end by itself, if that can be said."""
        with contextlib.suppress(StoreUnavailable):
            await self._link.revoke(lease)

    # -- calls -------------------------------------------------------------------------------------------------

    async def _swap(self, swaps: Sequence[Swap], lease: int) -> int | None:
        assert len({swap.key for swap in swaps}) == len(swaps), "one swap for each key"
        assert len(swaps) <= self.operations_max, "more swaps than one transaction takes"
        answer = await self._link.change(rpc.TxnRequest(
            compare=[self._compare(swap) for swap in swaps], success=[self._operation(swap, lease) for swap in swaps]
        ))  # fmt: skip
        self._saw(answer)
        return int(answer.header.revision) if answer.succeeded else None

    def _compare(self, swap: Swap) -> Any:
        return rpc.Compare(
            result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=self._key(swap.key), mod_revision=swap.revision
        )

    def _operation(self, swap: Swap, lease: int) -> Any:
        key = self._key(swap.key)
        if swap.value is None:
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=swap.value, lease=lease))

    async def _listing(self, prefix: str, after: str = "", count_max: int | None = None) -> Listing:
        """In pages, all as of the revision of the first."""
        first = self._key(prefix)
        end, at = _after(first), 0
        if after >= prefix:
            first = self._key(after) + b"\0"
        found: list[Any] = []
        while first < end:
            limit = _PAGE_KEYS if count_max is None else min(_PAGE_KEYS, count_max - len(found))
            answer = await self._link.read(rpc.RangeRequest(key=first, range_end=end, limit=limit, revision=at))
            self._saw(answer)
            at = at or int(answer.header.revision)
            found.extend(answer.kvs)
            if not answer.more or len(found) == count_max:
                break
            first = answer.kvs[-1].key + b"\0"
        return Listing(tuple(Entry(self._name(pair.key), pair.value, int(pair.mod_revision)) for pair in found), at)

    # -- following ---------------------------------------------------------------------------------------------

    async def _follow(self, prefix: str, seen: int | None) -> AsyncGenerator[Listing | Change, None]:
        backoff = Backoff(self._runtime.random, first_ms=50, most_ms=1_000)
        while not self._closed:
            try:
                if seen is None:
                    listing = await self._listing(prefix)
                    seen = listing.revision
                    yield listing
                async with contextlib.aclosing(self._responses(prefix, seen)) as responses:
                    async for revision, changes in responses:
                        backoff.reset()
                        for change in changes:
                            yield change
                        seen = max(seen, revision)
            except _Compacted:
                _log.info("store.compacted", extra={"facts": {"prefix": prefix, "revision": seen}})
                seen = None
            except StoreUnavailable as error:
                _log.debug("store.watch_broken", extra={"facts": {"prefix": prefix, "error": str(error)}})
            if not self._closed:
                await asyncio.sleep(backoff.next_ms() / 1000)

    async def _responses(self, prefix: str, seen: int) -> AsyncGenerator[tuple[int, Sequence[Change]], None]:
        """(revision up to which everything was seen, changes in order). Raises _Compacted, StoreUnavailable."""
        first = self._key(prefix)
        create = rpc.WatchCreateRequest(
            key=first, range_end=_after(first), start_revision=seen + 1, progress_notify=True
        )
        async with contextlib.aclosing(self._link.watch(create)) as stream:
            async for response in stream:
                revision = int(response.header.revision)
                if response.compact_revision or (response.created and revision < seen):
                    raise _Compacted                       # or this member of etcd is behind, or was restored
                if response.canceled:
                    raise StoreUnavailable(
                        f"etcd has ended a watch: {response.cancel_reason}", try_="look at etcd's log",
                        store=self.prefix, outcome="not_done",
                    )
                if not response.created:                   # what came before it opened is still to be told
                    changes = [self._told(event) for event in response.events]
                    yield max([change.revision for change in changes], default=revision), changes

    def _told(self, event: Any) -> Change:
        value = None if event.type else event.kv.value     # 0: put, 1: delete
        return Change(self._name(event.kv.key), value, int(event.kv.mod_revision))

    # -- keys --------------------------------------------------------------------------------------------------

    def _key(self, key: str) -> bytes:
        return (self.prefix + key).encode()

    def _name(self, key: bytes) -> str:
        return key.decode().removeprefix(self.prefix)

    def _saw(self, answer: Any) -> None:
        self._revision = max(self._revision, int(answer.header.revision))


class EtcdRegistration:
    def __init__(self, store: EtcdStore, key: str, revision: int, lease: int) -> None:
        self._store, self._key, self._revision, self.lease = store, key, revision, lease

    async def renew(self) -> bool:
        return await self._store.renew(self._key, self._revision, self.lease)

    async def update(self, value: bytes) -> bool:
        revision = await self._store.update(self._key, self._revision, value, self.lease)
        if revision is None:
            return False
        self._revision = revision
        return True

    async def release(self) -> None:
        await self._store.compare_and_swap(self._key, self._revision, None)
        await self._store.revoke(self.lease)


def _after(prefix: bytes) -> bytes:
    """The first key beyond all that begin with `prefix`, which ends in a letter or a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _tls(certificates: Certificates | None, runtime: Runtime) -> Tls | None:
    if certificates is None or not certificates.ca_file:
        return None
    ca, certificate, key = (
        _pem(runtime, path) for path in (certificates.ca_file, certificates.certificate_file, certificates.key_file)
    )
    return Tls(ca=ca, certificate=certificate, key=key)


def _pem(runtime: Runtime, path: str) -> bytes:
    if not path:
        return b""
    try:
        file = runtime.disk.open(path)
        try:
            return file.read(file.size(), 0)
        finally:
            file.close()
    except OSError as error:
        raise InvalidConfig(
            f"{path} cannot be read: {error.strerror or error}", try_="name a PEM file that this user may read",
            file="", line=0, key="cluster.etcd", value=path,
        ) from error
