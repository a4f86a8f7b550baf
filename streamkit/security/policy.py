"""Where a node may listen. Asked before anything is opened."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
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
