"""A coordination store by its address.

    sqlite:///path                        a file that the nodes of one host share
    etcd://host:port[,host:port][/prefix] an etcd cluster
"""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.errors import InvalidConfig
from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.metadata.store import Store
from streamkit.runtime.interfaces import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """PEM files; "": none."""

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


async def open_url(url: str, runtime: Runtime, certificates: Certificates | None = None) -> Store:
    """Raises InvalidConfig, StoreUnavailable."""
    kind, separator, rest = url.partition("://")
    if separator and kind == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return await SqliteStore.open(rest, runtime, shared=True)
    if separator and kind == "etcd" and rest:
        from streamkit.metadata.etcd_store import EtcdStore

        addresses, _, prefix = rest.partition("/")
        return await EtcdStore.open(addresses.split(","), runtime, prefix=prefix, certificates=certificates)
    raise InvalidConfig(
        f"{url!r} names no coordination store", try_="use etcd://host:port[,host:port][/prefix] or sqlite:///path",
        file="", line=0, key="cluster.url", value=url,
    )
