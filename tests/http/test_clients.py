"""Clients that others wrote: curl, nghttp and h2load, over both protocols, with and without TLS."""

import re

import pytest

from streamkit.http.exchange import Response
from streamkit.http.tls import server_context
from tests.http.served import certificate, run, serving

BODY = bytes(range(256)) * 8000                # 2 MB: more than curl sends without "Expect: 100-continue"


@pytest.fixture
def body(tmp_path):
    path = tmp_path / "body"
    path.write_bytes(BODY)
    return path


async def tell(request):
    return Response(200, (), f"{request.http2} {request.secure} {len(request.body)}\n".encode())


@pytest.mark.parametrize("how", ["--http1.1", "--http2-prior-knowledge", "--http2", "--http1.0"])
def test_curl_posts_and_reads_back(how, body):
    with serving() as listener:
        answer = run("curl", "-sSf", how, "--data-binary", f"@{body}", f"http://{listener.address}/path?query")

    assert answer == b"/path " + BODY


@pytest.mark.parametrize(("how", "http2"), [
    ("--http1.1", False), ("--http2", True), ("--http2-prior-knowledge", True), ("--no-alpn", False),
])  # fmt: skip
def test_curl_over_tls(how, http2, body, tmp_path):
    files = certificate(tmp_path)
    with serving(tell, server_context(*files)) as listener:
        url = f"https://{listener.address}/"
        answer = run("curl", "-sSf", how, "--cacert", files[0], "--data-binary", f"@{body}", url, url)

    assert answer == f"{http2} True {len(BODY)}\n".encode() * 2


@pytest.mark.parametrize("how", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_asks_for_the_head(how):
    with serving() as listener:
        answer = run("curl", "-sSfI", how, f"http://{listener.address}/abc").lower()

    assert b"content-length: 5\r\n" in answer


@pytest.mark.parametrize("how", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_reads_a_stream(how):
    async def give(sender):
        for number in range(100):
            await sender.send(b"%d " % number + bytes(50_000))

    async def handler(request):
        return Response(200, stream=give)

    with serving(handler) as listener:
        answer = run("curl", "-sSf", how, f"http://{listener.address}/")

    assert answer == b"".join(b"%d " % number + bytes(50_000) for number in range(100))


def test_nghttp_posts_many_at_once(body):
    with serving() as listener:
        answer = run("nghttp", "--multiply=20", "-d", body, f"http://{listener.address}/path")

    assert len(answer) == 20 * (6 + len(BODY))         # frames of all of them, as they came


@pytest.mark.parametrize("windows", ["10", "16", "30"])
def test_nghttp_with_small_and_large_windows(windows, body):
    with serving() as listener:
        answer = run("nghttp", "-w", windows, "-W", windows, "-d", body, f"http://{listener.address}/path")

    assert len(answer) == len(BODY) + 6


def test_nghttp_over_tls_with_padding_and_trailers(body, tmp_path):
    with serving(tls=server_context(*certificate(tmp_path))) as listener:
        answer = run(
            "nghttp", "--padding=100", "--trailer=x-trailer: yes", "-d", body, f"https://{listener.address}/path"
        )

    assert answer == b"/path " + BODY


@pytest.mark.parametrize("arguments", [
    ("--h1", "-n", 5000, "-c", 8), ("--h1", "-n", 2000, "-c", 2, "-m", 16), ("-n", 5000, "-c", 1, "-m", 100),
    ("-n", 2000, "-c", 8, "-m", 1), ("-n", 2000, "-c", 2, "-m", 500),
], ids=lambda arguments: " ".join(map(str, arguments)))  # fmt: skip
def test_h2load_loses_no_request(arguments, tmp_path):
    small = tmp_path / "small"
    small.write_bytes(bytes(1400))
    with serving(tell) as listener:
        report = run("h2load", *arguments, "-d", small, f"http://{listener.address}/").decode()
        assert listener.bodies.used == 0

    succeeded = re.search(r"(\d+) succeeded, 0 failed, 0 errored, 0 timeout", report)
    assert succeeded and int(succeeded[1]) == arguments[arguments.index("-n") + 1]
