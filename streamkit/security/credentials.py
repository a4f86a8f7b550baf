"""Who may call: the table of keys, what each key may do, and in whose name space it acts."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from streamkit.errors import InvalidConfig
from streamkit.security.sigv4 import Presented, Refused, SignedRequest, Verifier, parse

Permission = Literal["read", "write", "admin"]
PERMISSIONS: tuple[Permission, ...] = ("read", "write", "admin")
Mode = Literal["off", "keys"]


def is_account(text: str) -> bool:
    return len(text) == 12 and text.isascii() and text.isdigit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """account: 12 digits, or "" for the default one. token: the session token that goes with the key, "" for none.

    permissions: "read" (records and descriptions), "write" (records), "admin" (everything else).
    """

    key_id: str
    secret: str
    account: str = ""
    permissions: frozenset[str] = frozenset(PERMISSIONS)
    token: str = ""

    def __post_init__(self) -> None:
        if not self.key_id or not self.secret:
            raise InvalidConfig("a key needs an id and a secret", key="key_id", value=self.key_id)
        if self.account and not is_account(self.account):
            raise InvalidConfig(
                f"the account of key {self.key_id} has not 12 digits: {self.account!r}",
                key="account", value=self.account,
            )  # fmt: skip
        if unknown := self.permissions - set(PERMISSIONS):
            raise InvalidConfig(
                f"key {self.key_id} has permissions that do not exist: {', '.join(sorted(unknown))}",
                try_="take them from: " + ", ".join(PERMISSIONS), key="permissions", value=sorted(unknown),
            )  # fmt: skip

    def __repr__(self) -> str:
        return f"Key({self.key_id!r}, account={self.account!r}, permissions={sorted(self.permissions)})"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls: in which name space, with which key, and what that key may do."""

    account: str
    region: str
    key_id: str
    permissions: frozenset[str]


EVERYTHING: frozenset[str] = frozenset(PERMISSIONS)


class Authenticator:
    """mode "off": any key id and any signature pass, as long as they are given in the right form; "keys": the table.

    regions: those that may be named; () for any, each a name space of its own.
    """

    def __init__(
        self, keys: Iterable[Key] = (), *, mode: Mode | None = None, account: str = "000000000000",
        region: str = "us-east-1", regions: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.keys: Mapping[str, Key] = {key.key_id: key for key in keys}
        self.mode: Mode = mode or ("keys" if self.keys else "off")
        self.account = account
        self.region = region
        self.regions = frozenset(regions)
        self._verifier = Verifier()

    def authenticate(self, request: SignedRequest, service: str, now_ms: int) -> Identity:
        """service: the name it is signed for. Raises Refused."""
        presented = parse(request)
        if self.mode == "off":
            return Identity(
                presented.key_id if is_account(presented.key_id) else self.account,
                presented.region or self.region, presented.key_id, EVERYTHING,
            )  # fmt: skip
        key = self.keys.get(presented.key_id)
        if key is None or not hmac.compare_digest(presented.token.encode(), key.token.encode()):
            raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.")
        self._check_region(presented)
        self._verifier.verify(request, presented, key.secret, service, now_ms)
        return Identity(
            key.account or (key.key_id if is_account(key.key_id) else self.account), presented.region or self.region,
            key.key_id, key.permissions,
        )  # fmt: skip

    def _check_region(self, presented: Presented) -> None:
        if self.regions and presented.region not in self.regions:
            raise Refused(
                "InvalidSignatureException",
                f"Credential should be scoped to a valid region, not '{presented.region}'.",
            )
