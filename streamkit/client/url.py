"""Where to connect: streamkit://HOST[:PORT], host:port, or unix:/path; several nodes with commas between them.

The first of these that is given wins: the `url` argument, STREAMKIT_URL, streamkit://127.0.0.1:7440.
"""

from __future__ import annotations

import ipaddress
import warnings

from streamkit.errors import InvalidConfig
from streamkit.runtime import environment

DEFAULT_PORT = 7440
DEFAULT_URL = f"streamkit://127.0.0.1:{DEFAULT_PORT}"
_SCHEME = "streamkit://"
_TRY = f"write it as {DEFAULT_URL} or unix:/path/to/socket"


class InsecureConnectionWarning(UserWarning):
    """Records and credentials cross a network that others may read."""


def resolve_address(url: str | None) -> str:
    """The first address to connect to, as Network.connect takes it. Raises InvalidConfig."""
    return resolve_addresses(url)[0]


def resolve_addresses(url: str | None) -> tuple[str, ...]:
    """Every address to connect to, in the order in which they are tried. Raises InvalidConfig."""
    return parse_urls(url or environment.variable("STREAMKIT_URL") or DEFAULT_URL)


def parse_urls(url: str) -> tuple[str, ...]:
    """Each address of "streamkit://h1:7440,h2:7441", once. Raises InvalidConfig."""
    if url.startswith("unix:"):
        return (parse_url(url),)           # a path may hold a comma
    scheme, separator, rest = url.rpartition("://")
    return tuple(dict.fromkeys(parse_url(f"{scheme}{separator}{part.strip()}") for part in rest.split(",")))


def parse_url(url: str) -> str:
    """"host:port" or "unix:/path". Raises InvalidConfig; its text never repeats what may be a secret."""
    if url.startswith("unix:"):
        if len(url) == len("unix:"):
            raise _invalid("unix: needs the path of a socket")
        return url
    scheme, separator, rest = url.rpartition("://")
    if separator and scheme == "streamkit+tls":
        raise InvalidConfig(
            "this version cannot speak TLS", try_="connect over loopback or an encrypted tunnel", key="url"
        )
    if separator and scheme != "streamkit":
        raise _invalid(f"{scheme}:// is not a scheme that streamkit speaks")
    rest = rest.rstrip("/")
    if "@" in rest:
        raise _invalid("the url holds a user name or password")
    host, port = _split(rest)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if not address or address.startswith("unix:"):
        return True
    host, _ = _split(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_warned: list[str] = []


def warn_if_readable(address: str) -> None:
    """Once a process: a plain connection leaves this machine."""
    if is_loopback(address) or _warned:
        return
    _warned.append(address)
    warnings.warn(
        f"records travel to {address} unencrypted; try: connect over loopback or an encrypted tunnel",
        InsecureConnectionWarning,
        stacklevel=3,
    )


def _split(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, closing, port = text[1:].partition("]")
        port = port.removeprefix(":") if closing else "?"
    elif text.count(":") > 1:
        raise _invalid(f"{text!r}: an IPv6 address stands in brackets")
    else:
        host, _, port = text.partition(":")
    if not host or any(letter in " /?#" for letter in host):
        raise _invalid(f"{text!r} names no host")
    if not port:
        return host, DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise _invalid(f"{text!r}: the port must be 1 to 65535")
    return host, int(port)


def _invalid(why: str) -> InvalidConfig:
    return InvalidConfig(f"not a url to connect to: {why}", try_=_TRY, key="url")
