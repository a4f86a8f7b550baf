"""A log line is one line: the event first, then its facts."""

import io
import json
import logging
import sys

import pytest

from streamkit.observability.logs import EventFormatter, handler


def record(message, facts=None, level=logging.INFO, exc_info=None):
    made = logging.LogRecord("streamkit.storage", level, "", 0, message, (), exc_info)
    made.created = 1_700_000_000.25
    if facts is not None:
        made.facts = facts
    return made


def test_json_lines_carry_time_level_event_and_facts():
    line = EventFormatter(json=True, node="n1").format(record("storage.recovered", {"shards": 48, "event": "hidden"}))

    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z", "level": "info", "event": "storage.recovered", "node": "n1", "shards": 48,
    }


def test_text_lines_show_the_event_then_the_facts():
    line = EventFormatter(json=False).format(
        record("node.ready", {"seconds": 0.61234, "bytes": 18_293_110, "path": "a b"})
    )

    assert line.split(maxsplit=1)[1] == 'INFO  node.ready             seconds=0.612 bytes=18_293_110 path="a b"'


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_a_peer_sends_starts_a_line_of_its_own(as_json):
    line = EventFormatter(json=as_json).format(record("peer.said\nfake", {"text": "x\n12:00 ERROR fake"}))

    assert "\n" not in line


def test_an_exception_is_told_with_its_traceback():
    try:
        raise ValueError("broken")
    except ValueError:
        line = EventFormatter(json=True).format(record("node.failed", exc_info=sys.exc_info()))

    assert json.loads(line)["error"] == "ValueError: broken"
    assert "test_logs.py" in json.loads(line)["traceback"]


def test_auto_is_json_where_nobody_looks():
    stream = io.StringIO()
    logger = logging.Logger("streamkit")
    logger.addHandler(handler(stream, level="warning"))
    logger.info("too.quiet")
    logger.warning("disk.low", extra={"facts": {"free_bytes": 5}})

    assert json.loads(stream.getvalue())["free_bytes"] == 5


def test_arguments_named_in_the_message_are_facts():
    made = record("batch.failed stream=%s records=%d")
    made.args = ("a b", 5)

    assert json.loads(EventFormatter(json=True).format(made)).items() >= {
        "event": "batch.failed", "stream": "a b", "records": 5,
    }.items()
    assert EventFormatter(json=False).format(made).endswith('batch.failed           stream="a b" records=5')
    assert made.getMessage() == "batch.failed stream=a b records=5"


def test_other_arguments_stay_in_the_message():
    made = record("library.spoke of %s")
    made.args = ("that",)

    assert json.loads(EventFormatter(json=True).format(made))["event"] == "library.spoke of that"
