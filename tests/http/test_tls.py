"""TLS: both protocols by ALPN, HTTP/2 by its first bytes, and files that are no certificate."""

import asyncio
import ssl
from pathlib import Path

import pytest

from streamkit.errors import InvalidConfig
from streamkit.http.exchange import HttpConfig, Response
from streamkit.http.listener import HttpListener
from streamkit.http.tls import server_context
from streamkit.runtime.real import RealNetwork
from tests.http.served import certificate
from tests.http.worlds import Peer, Peer2, request, statuses


async def tell(request):
    return Response(200, (), f"{request.http2} {request.secure} {bool(request.peer)} ".encode() + request.body)


@pytest.fixture
async def listener(tmp_path):
    files = certificate(tmp_path)
    opened = await HttpListener.open(RealNetwork(), "127.0.0.1:0", tell, HttpConfig(), server_context(*files))
    opened.certificate = files[0]
    yield opened
    await opened.close()


async def connect(listener, factory, *alpn, version=None):
    context = ssl.create_default_context(cafile=listener.certificate)
    if alpn:
        context.set_alpn_protocols(alpn)
    if version is not None:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, version
    host, _, port = listener.address.partition(":")
    transport, peer = await asyncio.get_running_loop().create_connection(factory, host, int(port), ssl=context)
    peer.chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
    return peer


@pytest.mark.parametrize(("alpn", "chosen"), [((), None), (("h2",), "h2"), (("h2", "http/1.1"), "h2")])
async def test_http2_by_alpn_or_by_its_first_bytes(listener, alpn, chosen):
    peer = await connect(listener, Peer2, *alpn)
    answer = await peer.answer(peer.request("/", bytes(100_000)[:60_000]))
    peer.transport.close()

    assert peer.chosen == chosen
    assert answer == (200, b"True True True " + bytes(60_000))


@pytest.mark.parametrize(("alpn", "chosen"), [((), None), (("http/1.1",), "http/1.1"), (("spdy/1",), None)])
async def test_http1_by_alpn_or_by_its_first_bytes(listener, alpn, chosen):
    peer = await connect(listener, Peer, *alpn)
    answer = await peer.ask(request("/", method="POST", body=bytes(100_000), close=True))

    assert peer.chosen == chosen
    assert statuses(answer) == [200]
    assert answer.endswith(b"\r\n\r\nFalse True True " + bytes(100_000))


async def test_cleartext_on_a_tls_port_gets_no_answer(listener):
    reader, writer = await asyncio.open_connection(*listener.address.split(":"))
    writer.write(request())

    assert b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
    writer.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_versions_before_1_2_are_refused(listener):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await connect(listener, Peer, version=ssl.TLSVersion.TLSv1_1)


def test_http2_is_offered_only_when_it_is_spoken(tmp_path):
    server_context(*certificate(tmp_path), http2=False)


def test_files_that_cannot_be_used_are_named(tmp_path):
    ours, key = certificate(tmp_path)
    _, other = certificate(tmp_path, name="other")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")

    for pair in ((str(tmp_path / "missing"), key), (ours, str(tmp_path / "missing")), (ours, other), (str(empty), key),
                 (ours, str(empty)), (str(tmp_path), key)):
        with pytest.raises(InvalidConfig, match="cannot be used for TLS") as raised:
            server_context(*pair)
        assert raised.value.facts["file"] == pair[0]


def test_a_key_with_a_password_asks_nobody(tmp_path):
    from cryptography.hazmat.primitives import serialization

    ours, key = certificate(tmp_path)
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    with open(key, "wb") as file:
        file.write(loaded.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret")))

    with pytest.raises(InvalidConfig, match="password"):
        server_context(ours, key)
