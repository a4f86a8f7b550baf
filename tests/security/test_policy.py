"""Nobody listens off loopback by accident."""

import pytest

from streamkit.errors import UnsafeListener
from streamkit.security.policy import ListenerPlan, check_listeners, is_expected_host, is_foreign_page, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/run/streamkit.sock"])
def test_loopback_and_unix_sockets_are_safe(host):
    assert is_loopback(host)
    assert check_listeners([ListenerPlan("native", host, 7440)]) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.3.7", "203.0.113.9", "example.org", "", "localhost.evil.org"])
def test_everything_else_is_refused_before_anything_is_opened(host):
    with pytest.raises(UnsafeListener, match="without TLS and login") as caught:
        check_listeners([ListenerPlan("http", "127.0.0.1", 1), ListenerPlan("native", host, 7440)])
    assert caught.value.facts == {"host": host, "port": 7440}
    assert "--accept-insecure" in caught.value.try_


def test_an_accepted_exposure_is_told_so_that_it_can_be_announced():
    plan = ListenerPlan("native", "0.0.0.0", 7440)

    assert check_listeners([plan], accept_insecure=True) == [plan]


def test_a_protected_listener_may_be_anywhere():
    assert check_listeners([ListenerPlan("native", "0.0.0.0", 7440, protected=True)]) == []


@pytest.mark.parametrize(("header", "listening_on", "expected"), [
    ("127.0.0.1:7441", "127.0.0.1", True), ("localhost:7441", "127.0.0.1", True), ("[::1]:7441", "127.0.0.1", True),
    ("kinesis.localhost", "127.0.0.1", True), ("node.example:7441", "127.0.0.1", True),
    ("evil.example:7441", "127.0.0.1", False), ("", "127.0.0.1", False), ("evil.example", "10.0.0.5", True),
])  # fmt: skip
def test_a_listener_on_loopback_knows_what_it_is_called(header, listening_on, expected):
    assert is_expected_host(header, listening_on, "node.example") is expected


@pytest.mark.parametrize(("headers", "foreign"), [
    ({}, False), ({"sec-fetch-site": "same-origin"}, False), ({"sec-fetch-site": "cross-site"}, True),
    ({"origin": "https://evil.example", "host": "127.0.0.1:7441"}, True),
    ({"origin": "http://127.0.0.1:7441", "host": "127.0.0.1:7441"}, False),
    ({"origin": "http://localhost:3000", "host": "127.0.0.1:7441"}, False), ({"origin": "null", "host": ""}, True),
])  # fmt: skip
def test_pages_of_others_are_told_apart(headers, foreign):
    assert is_foreign_page(headers, {"http://localhost:3000"}) is foreign
