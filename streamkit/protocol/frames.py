"""Frames: the unit of the wire, parsed and laid out in `_core.framing`, which draws them.

Put and fetch and their answers are frames of their own with fixed headers; everything else is a MessageFrame
around one of `messages.Message`. This module names what the other rooms may use of the kernel, adds the
limits, and turns packed messages into values and errors into failures.
"""

from __future__ import annotations

from streamkit._core.framing import (
    FETCH,
    FETCH_OK,
    FRAME_START_BYTES,
    MESSAGE,
    PUT,
    PUT_OK,
    REPLICATE,
    REPLICATED,
    Acknowledgement,
    Fetched,
    FetchFrame,
    FrameReader,
    FrameWriter,
    MessageFrame,
    PutFrame,
    PutReceipt,
    Section,
)
from streamkit.errors import ProtocolMismatch
from streamkit.model.limits import FRAME_BYTES_MAX
from streamkit.protocol.messages import Message, decode

__all__ = [
    "FETCH",
    "FETCH_BYTES_MAX",
    "FETCH_OK",
    "FRAME_BYTES_MAX",
    "FRAME_START_BYTES",
    "HTTP_ANSWER",
    "MESSAGE",
    "MESSAGE_BYTES_MAX",
    "PUT",
    "PUT_OK",
    "REPLICATE",
    "REPLICATED",
    "Acknowledgement",
    "FetchFrame",
    "Fetched",
    "Frame",
    "FrameReader",
    "FrameWriter",
    "MessageFrame",
    "PutFrame",
    "PutReceipt",
    "Section",
    "unpack",
]

Frame = MessageFrame | PutFrame | PutReceipt | FetchFrame | Fetched | Section | Acknowledgement

MESSAGE_BYTES_MAX = 4 * 1024 * 1024        # a description of 10,000 shards is about 1 MiB
FETCH_BYTES_MAX = FRAME_BYTES_MAX - 1024   # what the batches of one answer may add up to

HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 57\r\n\r\n"
    b"this port speaks the native streamkit protocol, not HTTP\n"
)


def unpack(frame: MessageFrame) -> Message:
    """The message in a frame. Raises ProtocolMismatch when it is none, or too large."""
    if len(frame.payload) > MESSAGE_BYTES_MAX:
        raise ProtocolMismatch(
            f"a message of {len(frame.payload)} bytes, the limit is {MESSAGE_BYTES_MAX}",
            reason="message",
            theirs=len(frame.payload),
            ours=MESSAGE_BYTES_MAX,
        )
    try:
        return decode(frame.payload)
    except (ValueError, RecursionError) as cause:
        raise ProtocolMismatch(f"a message does not decode: {cause}", reason="message") from cause
