"""Log lines: the event's name first, then its facts; JSON for services, coloured text for terminals.

Library code logs `logger.info("storage.recovered", extra={"facts": {"shards": 48}})`, or with plain
`%`-arguments; this room only forms the line. Nothing here adds handlers or touches the root logger:
whoever runs a process (the command line) does, with `handler(stream, …)`.
"""

from __future__ import annotations

import datetime
import logging
import re
from typing import Any, TextIO

import msgspec

_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET = "\x1b[0m"
_NAMED = re.compile(r"(\w+)=%[a-z]")
_encode = msgspec.json.Encoder(enc_hook=str).encode


def event_and_facts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Rooms that run in users' processes write "event name=%s …" with arguments, which any handler can show."""
    facts = getattr(record, "facts", None)
    if isinstance(facts, dict):
        return record.getMessage(), dict(facts)
    event, _, rest = str(record.msg).partition(" ")
    names = _NAMED.findall(rest)
    if not isinstance(record.args, tuple) or not names or len(names) != len(record.args):
        return record.getMessage(), {}
    return event, dict(zip(names, record.args, strict=True))


class EventFormatter(logging.Formatter):
    """One line a record, whatever it holds: newlines become spaces in text and stay escaped in JSON."""

    def __init__(self, *, json: bool, colour: bool = False, node: str = "") -> None:
        super().__init__()
        self._json, self._colour, self._node = json, colour, node

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        level = record.levelname.lower()
        event, facts = event_and_facts(record)
        if record.exc_info and record.exc_info[0] is not None:
            facts["error"] = f"{record.exc_info[0].__name__}: {record.exc_info[1]}"
            facts["traceback"] = self.formatException(record.exc_info)
        if self._json:
            line: dict[str, Any] = {
                "time": moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z",
                "level": level, "event": event,
            }
            if self._node:
                line["node"] = self._node
            return _encode(line | {key: value for key, value in facts.items() if key not in line}).decode()
        shown = " ".join(f"{key}={_plain(value)}" for key, value in facts.items() if key != "traceback")
        text = f"{event:<22} {shown}".rstrip().replace("\r", " ").replace("\n", " ")
        name = f"{level.upper():<5}"
        if self._colour:
            name = f"{_COLOURS.get(level, '')}{name}{_RESET}"
        line_text = f"{moment.astimezone():%H:%M:%S} {name} {text}"
        return f"{line_text}\n{facts['traceback']}" if "traceback" in facts else line_text


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return _encode(text).decode() if " " in text or "=" in text or not text.isprintable() or not text else text


def handler(stream: TextIO, *, format: str = "auto", level: str = "info", node: str = "") -> logging.Handler:
    """For the logger "streamkit". format: "json", "text", or "auto" (text on a terminal, else JSON)."""
    terminal = stream.isatty()
    made = logging.StreamHandler(stream)
    made.setLevel(level.upper())
    made.setFormatter(
        EventFormatter(json=format == "json" or (format == "auto" and not terminal), colour=terminal, node=node)
    )
    return made
