"""An HTTP endpoint that adds up numbers, once for each idempotency key, and loses requests and answers now and then."""

from __future__ import annotations

import http.client
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

_TIMEOUT_S = 10.0


class Endpoint:
    """POST / with Idempotency-Key: adds, or says that it did before. GET /KEY: 200 when it was added, else 404.

    added: what came with each key. mixed: keys that came with other numbers than before.
    """

    def __init__(self, seed: int, *, unreliable: bool = True) -> None:
        self.added: dict[str, list[int]] = {}
        self.mixed: list[str] = []
        self.requests = 0
        self._unreliable = unreliable
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = endpoint.take(self.headers["Idempotency-Key"], body)
                if status:
                    self._answer(status)
                else:
                    self.close_connection = True           # done, and nobody is told

            def do_GET(self) -> None:
                self._answer(200 if unquote(self.path[1:]) in endpoint.added else 404)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that were killed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def take(self, key: str, numbers: list[int]) -> int:
        """The status to answer with; 0: none."""
        with self._lock:
            self.requests += 1
            drawn = self._draw.random() if self._unreliable else 1.0
            if drawn < 0.1:
                return 503                 # nothing was done
            if self.added.setdefault(key, numbers) != numbers:
                self.mixed.append(key)
            return 0 if drawn < 0.25 else 200

    def values(self) -> list[int]:
        with self._lock:
            return sorted(value for numbers in self.added.values() for value in numbers)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def add_once(url: str, key: str, numbers: list[int]) -> None:
    """Raises whatever keeps the answer from being 200."""
    status = _asked(url, "POST", "/", json.dumps(numbers), {"Idempotency-Key": key})
    if status != 200:
        raise ConnectionError(f"the endpoint answers {status}")


def was_added(url: str, key: str) -> bool:
    return _asked(url, "GET", "/" + quote(key, safe=""), None, {}) == 200


def _asked(url: str, method: str, path: str, body: str | None, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()
