"""Where a client connects."""

from __future__ import annotations

import pytest

from streamkit.client import url
from streamkit.errors import InvalidConfig


@pytest.mark.parametrize(
    "text, address",
    [
        ("streamkit://127.0.0.1:7440", "127.0.0.1:7440"),
        ("streamkit://broker.example", "broker.example:7440"),
        ("streamkit://broker.example/", "broker.example:7440"),
        ("broker.example:99", "broker.example:99"),
        ("localhost", "localhost:7440"),
        ("streamkit://[::1]:80", "[::1]:80"),
        ("streamkit://[::1]", "[::1]:7440"),
        ("unix:/run/streamkit.sock", "unix:/run/streamkit.sock"),
    ],
)
def test_a_url_names_one_address(text: str, address: str) -> None:
    assert url.parse_url(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "http://a", "streamkit://", "streamkit://a:0", "streamkit://a:65536", "streamkit://a:b", "streamkit://a b",
     "streamkit://::1", "streamkit://[::1", "unix:", "streamkit+tls://a", "streamkit://a/b", "a:1:2", "streamkit://[::1]x"],
)  # fmt: skip
def test_anything_else_is_an_invalid_setting_with_a_way_out(text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        url.parse_url(text)
    assert caught.value.try_


def test_a_secret_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidConfig) as caught:
        url.parse_url("streamkit://me:hunter2@host")
    assert "hunter2" not in repr(caught.value) + str(caught.value.facts)


def test_the_argument_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMKIT_URL", raising=False)
    assert url.resolve_address(None) == "127.0.0.1:7440"
    monkeypatch.setenv("STREAMKIT_URL", "streamkit://b:1")
    assert url.resolve_address(None) == "b:1"
    assert url.resolve_address("streamkit://c:2") == "c:2"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "unix:/x", ""])
def test_loopback_is_quiet(address: str) -> None:
    assert url.is_loopback(address)


def test_a_plain_connection_to_elsewhere_warns_once_a_process(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(url, "_warned", [])
    for address in ("127.0.0.1:1", "10.0.0.7:1", "10.0.0.8:1"):
        url.warn_if_readable(address)
    assert [w.category for w in recwarn] == [url.InsecureConnectionWarning]
    assert "10.0.0.7:1" in str(recwarn[0].message)
