"""What an operation is called with, what it answers, and what a service consists of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from streamkit.gateway import errors
from streamkit.gateway.shapes import Model
from streamkit.http.exchange import Request, Response


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf: the name space, and the key that signed."""

    account: str
    region: str
    key_id: str = ""


@dataclass(slots=True)
class Call:
    """One request that has passed every check that needs no knowledge of streams.

    params: typed as the input's shape says: blobs are bytes, timestamps integer milliseconds; members that were null
    are absent. Empty for a raw operation. cbor: the format, of the request and so of the reply. body: of the request,
    inflated.
    """

    operation: str
    params: dict[str, Any]
    caller: Caller
    request: Request
    cbor: bool = False
    request_id: str = ""
    body: bytes = b""

    def dry_run(self) -> None:
        """To be called once nothing but the deed is left to do. Raises ApiError when the caller wants no deed."""
        if self.params.get("DryRun"):
            raise errors.dry_run()


@dataclass(frozen=True, slots=True)
class Reply:
    """A body that is already in the call's format."""

    body: bytes | memoryview


Answer = dict[str, Any] | None | Reply | Response
Operation = Callable[[Call], Awaitable[Answer]]
Access = Literal["read", "write", "admin"]
NO_ACCESS: Mapping[str, Access] = MappingProxyType({})


@dataclass(slots=True)
class Service:
    """One API: its names, its model and what carries it out.

    target: what stands before the operation in X-Amz-Target. operations: those that are missing are unknown.
    raw: operations that parse their body themselves. json_version: what its clients speak; a request in the other is
    understood, and answered in its own. json_errors: those whose errors are JSON in any format.
    access: the class of each operation that the first word of its name does not tell (`access_of`).
    rpc: also answers /service/<target>/operation/<name> (smithy RPC v2, CBOR, time in seconds).
    query_namespace: XML name space; with it the service also answers forms with an `Action` and no target.
    body_bytes_max: the largest body that is parsed here; raw operations are bounded by the listener alone.
    """

    target: str
    signing_name: str
    model: Model
    operations: Mapping[str, Operation]
    raw: frozenset[str] = frozenset()
    json_version: Literal["1.1", "1.0"] = "1.1"
    json_errors: frozenset[str] = frozenset()
    access: Mapping[str, Access] = field(default_factory=lambda: NO_ACCESS)
    rpc: bool = False
    query_namespace: str = ""
    body_bytes_max: int = 2 << 20

    def access_of(self, operation: str) -> Access:
        """Reading, writing of records, or everything else."""
        if (given := self.access.get(operation)) is not None:
            return given
        if operation.startswith(("Get", "List", "Describe", "Subscribe", "Query", "Scan", "BatchGet")):
            return "read"
        return "write" if operation.startswith("Put") else "admin"
