from collections.abc import Callable
from typing import Any as Anything

from streamkit._core.batch import Batch

STEPS_MAX: int
NO_ROUTE: int
ROUTES_MAX: int

class Undecided(Exception):
    """Whether the record matches cannot be said."""

class Node:
    """Base of the closed set."""

class Constant(Node):
    constant: object
    def __init__(self, constant: object) -> None: ...

class Field(Node):
    name: str
    def __init__(self, name: str) -> None: ...

class Header(Node):
    name: str
    def __init__(self, name: str) -> None: ...

class Path(Node):
    steps: tuple[str | int, ...]
    def __init__(self, steps: tuple[str | int, ...]) -> None: ...

class Compare(Node):
    sign: str
    def __init__(self, sign: str, left: Node, right: Node) -> None: ...

class Between(Node):
    def __init__(self, inner: Node, low: Node, high: Node) -> None: ...

class Among(Node):
    def __init__(self, inner: Node, items: tuple[Node, ...]) -> None: ...

class Like(Node):
    def __init__(self, inner: Node, parts: tuple[tuple[str, bytes | None], ...]) -> None: ...

class IsNull(Node):
    def __init__(self, inner: Node) -> None: ...

class Not(Node):
    def __init__(self, inner: Node) -> None: ...

class All(Node):
    def __init__(self, inner: tuple[Node, ...]) -> None: ...

class Any(Node):
    def __init__(self, inner: tuple[Node, ...]) -> None: ...

class Negative(Node):
    def __init__(self, inner: Node) -> None: ...

class Arithmetic(Node):
    sign: str
    def __init__(self, sign: str, left: Node, right: Node) -> None: ...

class Condition:
    node: Node
    needs_data: bool
    def __init__(self, node: Node, needs_data: bool) -> None: ...

def route(
    batch: Batch[Anything],
    conditions: tuple[Condition, ...],
    decode: Callable[[bytes], Anything] | None = None,
    decode_for: Callable[[str], Callable[[bytes], Anything]] | None = None,
) -> tuple[bytes, int]:
    """Which condition each record meets first, NO_ROUTE for none; how many records could not be decided."""
