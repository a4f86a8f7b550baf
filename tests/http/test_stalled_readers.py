"""Real sockets of which nobody reads: streams stop, and the memory of the process does not move."""

import os
import socket
import ssl
import time

import h2.config
import h2.connection
import pytest
from h2.settings import SettingCodes, Settings

from streamkit.http.exchange import Response
from streamkit.http.tls import server_context
from tests.http.served import certificate, serving
from tests.http.worlds import request

CHUNK = bytes(256 * 1024)
GROWTH_MAX = 16 * 1024 * 1024


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def preface(window):
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
    client.initiate_connection()
    if window > 100_000:
        client.increment_flow_control_window(2**30)
    for number in range(20):
        fields = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a")]
        client.send_headers(2 * number + 1, fields, end_stream=True)
    return client.data_to_send()


@pytest.mark.parametrize(
    "first", [request(), preface(2**31 - 1), preface(65_535), preface(0)],
    ids=["HTTP/1.1", "HTTP/2, the socket is full", "HTTP/2, the window is shut", "no window at all"],
)
@pytest.mark.parametrize("tls", [False, True])
def test_a_stalled_reader_costs_no_memory(first, tls, tmp_path):
    sent = []
    files = certificate(tmp_path) if tls else ("", "")

    async def flood(sender):
        while True:
            await sender.send(CHUNK)
            sent.append(1)

    async def handler(request):
        return Response(200, stream=flood)

    with serving(handler, server_context(*files) if tls else None) as listener:
        host, _, port = listener.address.partition(":")
        before = resident_bytes()
        ends = []
        for _ in range(3):
            end = socket.socket()
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            end.connect((host, int(port)))
            if tls:
                end = ssl.create_default_context(cafile=files[0]).wrap_socket(end, server_hostname="localhost")
            end.sendall(first)
            ends.append(end)
        seen, quiet = -1, 0
        while quiet < 10:                  # nothing announces that nothing happens any more
            time.sleep(0.02)               # a look at a thread that runs beside this one
            quiet = quiet + 1 if len(sent) == seen else 0
            seen = len(sent)
        grown = resident_bytes() - before
        for end in ends:
            end.close()

    assert grown < GROWTH_MAX
    assert seen < 3 * 64                   # what the sockets' buffers took: a few MiB each
