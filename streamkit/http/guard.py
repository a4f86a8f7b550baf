"""What an HTTP/2 peer may ask for without bringing work: counted from frame headers, before the engine reads them.

    frame header (9 bytes): length uint24 ▸ type uint8 ▸ flags uint8 ▸ stream uint32        RFC 9113, 4.1
"""

from __future__ import annotations

from streamkit.http.exchange import HttpConfig

FRAMES_MAX = 64                        # looked at before others have their turn: a request is some 100 µs
_CONTINUATIONS_MAX = 32
_REFILL_SECONDS = 20.0
_DATA, _HEADERS, _CONTINUATION, _WITH_COST = 0, 1, 9, frozenset({2, 3, 4, 6, 8})
_END_STREAM, _END_HEADERS = 1, 4
_PREFACE_BYTES = 24


class FrameGuard:
    """Looks at the headers of frames before the engine does.

    PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, unknown frames and empty DATA cost one each; requests that
    were answered and frames of DATA that were sent earn some back, and time earns the rest.
    in_block: a header block has begun and has not ended.
    """

    def __init__(self, config: HttpConfig, now: float) -> None:
        self._limit = float(config.control_frames_max)
        self._block_bytes_max = 2 * config.head_bytes_max      # as compressed; what comes out is bounded by the engine
        self._left = self._limit
        self._at = now
        self._skip = _PREFACE_BYTES
        self._start = b""
        self.in_block = False
        self._block_bytes = self._continuations = 0

    def earn(self, frames: int) -> None:
        self._left = min(self._limit, self._left + frames)

    def look(self, data: bytes, now: float) -> tuple[str, int]:
        """What is wrong with `data` ("": nothing), and how many bytes of it were looked at: FRAMES_MAX frames."""
        self._left = min(self._limit, self._left + (now - self._at) * self._limit / _REFILL_SECONDS)
        self._at = now
        at, size = 0, len(data)
        for _ in range(FRAMES_MAX):
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
            if at == size:
                break
            start = self._start + data[at : at + 9 - len(self._start)]
            at += len(start) - len(self._start)
            if len(start) < 9:
                self._start = start
                break
            self._start = b""
            self._skip = length = start[0] << 16 | start[1] << 8 | start[2]
            if reason := self._frame(start[3], start[4], length):
                return reason, at
        return "", at

    def spend(self) -> bool:
        """For a frame that turned out to bring nothing. False: there was nothing left to spend."""
        self._left -= 1
        return self._left >= 0

    def _frame(self, kind: int, flags: int, length: int) -> str:
        if kind == _DATA:
            if length or flags & _END_STREAM:
                return ""
        elif kind in (_HEADERS, _CONTINUATION):
            if kind == _HEADERS:
                self._block_bytes = self._continuations = 0
            else:
                self._continuations += 1
            self._block_bytes += length
            self.in_block = not flags & _END_HEADERS
            too_many = self._continuations > _CONTINUATIONS_MAX or self._block_bytes > self._block_bytes_max
            return "continuations" if too_many else ""
        elif kind not in _WITH_COST and kind <= _CONTINUATION:
            return ""
        return "" if self.spend() else "control frames"
