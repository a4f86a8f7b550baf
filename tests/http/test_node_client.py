"""Node's HTTP/2 and HTTP/1.1 clients: what the JavaScript SDK for Kinesis speaks with."""

import json
from pathlib import Path

import pytest

from streamkit.http.tls import server_context
from tests.http.served import certificate, run, serving

SCRIPT = Path(__file__).with_name("node_client.js")


@pytest.mark.parametrize("tls", [False, True])
def test_node_speaks_both_protocols(tls, tmp_path):
    files = certificate(tmp_path)
    with serving(tls=server_context(*files) if tls else None) as listener:
        arguments = [f"https://{listener.address}", files[0]] if tls else [f"http://{listener.address}"]
        told = json.loads(run("node", SCRIPT, *arguments))

    assert told == {
        "alpn": "h2" if tls else "h2c", "pinged": True, "many": [[200, 300_003]] * 50, "old": [[200, 300_007]] * 2,
    }
