"""How patient a client is, and how much it may hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    connect_timeout_ms: int = 3_000          # until the broker has answered the greeting
    connect_stagger_ms: int = 250            # of several nodes, the next is tried when one took so long to answer
    silence_ms: int = 1_000                  # nothing heard while requests wait: ask for a word, and wait as long again
    request_timeout_ms: int = 30_000         # for an answer; a fetch may take its wait_ms on top
    reconnect_first_ms: int = 50             # after a refused connection calls fail at once for about this long …
    reconnect_most_ms: int = 1_000           # … doubling up to this
    queue_bytes_max: int = 64 * 1024 * 1024  # not yet taken by the socket; a put above it fails with BufferFull
    receive_bytes_keep: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("connect_timeout_ms", "connect_stagger_ms", "silence_ms", "request_timeout_ms",
                     "reconnect_first_ms", "queue_bytes_max"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
