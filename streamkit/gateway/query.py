"""The form that the oldest clients post, and the XML they are answered with.

    Action=PutMetricData&Version=2010-08-01&MetricData.member.1.MetricName=Lag&MetricData.member.1.Value=3

Lists are numbered members, maps numbered entries with a key and a value; all values are text and become what their
shape says.
"""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from streamkit.gateway.errors import ApiError, serialization
from streamkit.gateway.shapes import Boolean, Double, Integer, List, Map, Shape, Structure, Timestamp

FIELDS_MAX = 20_000
DEPTH_MAX = 16
NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Tree = dict[str, Any]


def action_of(body: bytes) -> str:
    """What the form asks for; "" when it does not say. It is the first field that clients write, or near it."""
    for field in body[:4096].split(b"&"):
        name, _, value = field.partition(b"=")
        if name == b"Action":
            return value.decode("latin-1")
    return ""


class Query:
    cbor = False
    text = True
    seconds = True
    content_type = "text/xml"

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def decode(self, body: bytes, shape: Structure) -> Any:
        if body.count(b"&") >= FIELDS_MAX:
            raise serialization(f"The form has more than {FIELDS_MAX} fields.")
        tree: Tree = {}
        try:
            for field in body.decode("ascii").split("&"):
                name, _, value = field.partition("=")
                _plant(tree, unquote_plus(name, errors="strict"), unquote_plus(value, errors="strict"))
        except UnicodeDecodeError:
            raise serialization("The form is not in UTF-8.") from None
        return _grown(shape, tree)

    def encode(self, operation: str, shape: Structure, value: dict[str, Any] | None, request_id: str) -> bytes:
        result = f"<{operation}Result>{_xml(shape, value)}</{operation}Result>" if value else ""
        return (
            f'<{operation}Response xmlns="{self.namespace}">{result}<ResponseMetadata><RequestId>{request_id}'
            f"</RequestId></ResponseMetadata></{operation}Response>"
        ).encode()

    def encode_error(self, error: ApiError, request_id: str) -> bytes:
        return (
            f'<ErrorResponse xmlns="{self.namespace}"><Error><Type>{"Sender" if error.status < 500 else "Receiver"}'
            f"</Type><Code>{escape(error.name)}</Code><Message>{escape(error.message or '')}</Message></Error>"
            f"<RequestId>{request_id}</RequestId></ErrorResponse>"
        ).encode()


def _plant(tree: Tree, name: str, value: str) -> None:
    """`a.b.1` is put in as {"a": {"b": {"1": value}}}."""
    *path, last = name.split(".", DEPTH_MAX)
    for part in path:
        below = tree.setdefault(part, {})
        if type(below) is not dict:
            raise serialization(f"The field '{name[:256]}' is both a value and more than one.")
        tree = below
    if last in tree:
        raise serialization(f"The field '{name[:256]}' is given twice.")
    tree[last] = value


def _grown(shape: Shape, found: Any) -> Any:
    """The text of a form as JSON would have it. Raises ApiError (SerializationException)."""
    if isinstance(shape, Structure | List | Map):
        if type(found) is not dict:
            if found == "":
                return {} if not isinstance(shape, List) else []
            raise serialization("A field of the form is a value and should be more than one.")
        if isinstance(shape, Structure):
            return {
                name: _grown(member.shape, found[name]) for name, member in shape.members.items() if name in found
            }
        if isinstance(shape, List):
            return [_grown(shape.element, item) for item in _numbered(found.get("member", found))]
        entries = _numbered(found.get("entry", found))
        if not all(type(entry) is dict and type(entry.get("key")) is str for entry in entries):
            raise serialization("An entry of a map in the form has no key.")
        return {entry["key"]: _grown(shape.value, entry.get("value", "")) for entry in entries}
    if type(found) is not str:
        raise serialization("A field of the form is more than one value and should be one.")
    return _value(shape, found)


def _numbered(found: Any) -> list[Any]:
    if type(found) is not dict or not all(key.isascii() and key.isdigit() and len(key) < 7 for key in found):
        raise serialization("A list in the form has members that are not numbered.")
    return [found[key] for key in sorted(found, key=int)]


def _value(shape: Shape, found: str) -> Any:
    try:
        if isinstance(shape, Integer):
            return int(found)
        if isinstance(shape, Double):
            return float(found)
        if isinstance(shape, Timestamp):
            moment = datetime.fromisoformat(found)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise serialization(f"'{found[:256]}' is not the kind of value that belongs there.") from None
    if isinstance(shape, Boolean):
        if found not in ("true", "false"):
            raise serialization(f"'{found[:256]}' is neither true nor false.")
        return found == "true"
    return found


def escape(text: str) -> str:
    """What XML has no way to write becomes a mark."""
    return html.escape(NOT_XML.sub("\ufffd", text), quote=False)


def _xml(shape: Shape, value: Any) -> str:
    if isinstance(shape, Structure):
        return "".join(f"<{name}>{_xml(shape.members[name].shape, item)}</{name}>" for name, item in value.items())
    if isinstance(shape, List):
        return "".join(f"<member>{_xml(shape.element, item)}</member>" for item in value)
    if isinstance(shape, Map):
        return "".join(
            f"<entry><key>{escape(key)}</key><value>{_xml(shape.value, item)}</value></entry>"
            for key, item in value.items()
        )
    if isinstance(shape, Boolean):
        return "true" if value else "false"
    if isinstance(shape, Timestamp):
        return f"{datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return escape(str(value))
