"""The HTTP/2 engine: `h2` with our settings, and without four of its habits.

It writes every frame out for its log, counts all streams for each new one, and gives out no answers any more once
the peer has said GOAWAY; and it tells only by an exception that a stream takes nothing more.
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, Frame, GoAwayFrame

from streamkit.http.exchange import HttpConfig

_CONNECTION_WINDOW = 16 * 1024 * 1024
_STREAM_WINDOW = 1024 * 1024
_FRAME_BYTES_MAX = 64 * 1024           # of DATA that arrives: fewer and larger frames cost less


class _Silent:
    """The engine's log: it tells each frame, many times over."""

    def debug(self, *told: object) -> None:
        return

    trace = debug


class _Data(DataFrame):
    """The engine writes every frame out for its log, all bytes of it, whether anybody reads that or not."""

    __repr__ = object.__repr__


class Engine(H2Connection):
    """h2 counts its streams anew for each that opens; here those that have ended leave at once, so that with a
    thousand open streams a request costs what it costs with one.
    """

    def __init__(self, config: HttpConfig) -> None:
        super().__init__(
            H2Configuration(
                client_side=False, header_encoding=None, validate_outbound_headers=False,
                normalize_outbound_headers=False, normalize_inbound_headers=False,
                logger=_Silent(),  # type: ignore[arg-type]  # it wants its own class, and calls these two methods
            )
        )
        self._frame_dispatch_table[_Data] = self._receive_data_frame
        self._frame_dispatch_table[GoAwayFrame] = self._peer_ends
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: config.streams_max,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: _FRAME_BYTES_MAX,
                SettingCodes.MAX_HEADER_LIST_SIZE: config.head_bytes_max,
            },
        )
        self.max_inbound_frame_size = _FRAME_BYTES_MAX
        self.decoder.max_header_list_size = config.head_bytes_max
        self.initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW - 65_535)

    def _receive_frame(self, frame: Frame) -> list[Event]:
        if frame.__class__ is DataFrame:
            frame.__class__ = _Data
        return super()._receive_frame(frame)

    def _peer_ends(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        """A peer that says GOAWAY begins nothing more, and still wants its answers: h2 would give out none of them."""
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        return [], [event]

    def _open_streams(self, remainder: int) -> int:
        return len(self.streams) if remainder == 1 else 0

    def takes(self, stream_id: int) -> bool:
        """Whether something may still be sent. Events come in batches: the peer may have reset it in the same one."""
        stream = self.streams.get(stream_id)
        return stream is not None and not stream.closed

    def forget(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None and stream.closed:
            del self.streams[stream_id]
            self._closed_streams[stream_id] = stream.closed_by
