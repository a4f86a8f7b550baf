"""What a listener needs to speak TLS: certificate, key, TLS 1.2 or newer, and which protocols it offers."""

from __future__ import annotations

import ssl

from streamkit.errors import InvalidConfig


def server_context(certificate: str, key: str, *, http2: bool = True) -> ssl.SSLContext:
    """A context for `HttpListener.open`.

    certificate: path of a PEM file with the server's certificate and those between it and the root, in this order.
    key: path of a PEM file with its private key, without a password.
    http2: whether h2 is offered beside http/1.1; clients that offer nothing choose by their first bytes.
    Raises InvalidConfig when the files cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:         # ssl.SSLError is an OSError
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InvalidConfig(
            f"{certificate} and {key} cannot be used for TLS: {reason}",
            try_="name a certificate and its private key, both PEM, which this user may read",
            file=certificate, line=0, key="tls", value=key,
        ) from error
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("the private key has a password")
