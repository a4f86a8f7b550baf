"""Where a node may listen. Asked before anything is opened."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamkit.errors import UnsafeListener


@dataclass(frozen=True, slots=True)
class ListenerPlan:
    """One address a node means to listen on. protected: it asks for TLS and a login."""

    name: str
    host: str
    port: int
    protected: bool = False

    @property
    def address(self) -> str:
        return self.host if is_unix(self.host) else f"{self.host}:{self.port}"


def is_unix(host: str) -> bool:
    return host.startswith("unix:")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name other than localhost may point anywhere: no."""
    if host == "localhost" or is_unix(host):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_expected_host(header: str, listening_on: str, advertised: str = "") -> bool:
    """Whether the Host of a request is one that a listener on `listening_on` goes by.

    A web page that the user visits can have its own name point at this machine, and ask what listens here.
    """
    host = header.rsplit(":", 1)[0] if header.rsplit(":", 1)[-1].isdigit() else header
    return (
        is_loopback(host) or host.endswith(".localhost") or (bool(host) and host in (listening_on, advertised))
        or not is_loopback(listening_on)
    )  # fmt: skip


def is_foreign_page(headers: Mapping[str, str], origins: Iterable[str] = ()) -> bool:
    """Whether a browser sends this for somebody else's page. headers: names in lower case. origins: those allowed."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") == "cross-site"
    _, scheme, host = origin.partition("://")
    return origin not in origins and not (scheme and host == headers.get("host"))


def check_listeners(plans: Iterable[ListenerPlan], *, accept_insecure: bool = False) -> list[ListenerPlan]:
    """The listeners that are open to others without protection, to be announced. Raises UnsafeListener."""
    exposed = [plan for plan in plans if not plan.protected and not is_loopback(plan.host)]
    if exposed and not accept_insecure:
        raise UnsafeListener(
            f"will not listen on {exposed[0].address} without TLS and login: "
            "anyone who reaches it could read and delete your data",
            try_="streamkit serve --listen 127.0.0.1     (or --accept-insecure on a network you trust)",
            host=exposed[0].host, port=exposed[0].port,
        )
    return exposed
