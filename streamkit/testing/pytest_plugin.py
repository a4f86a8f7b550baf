"""What pytest finds when streamkit is installed: `streamkit_node`, `streamkit_clock` and `streamkit_chaos`.

Loaded by pytest itself, so everything else is imported when a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streamkit.testing.clock import Clock
    from streamkit.testing.node import Node
    from streamkit.testing.report import ChaosReport


@pytest.fixture
def streamkit_clock() -> Clock:
    """The clock of `streamkit_node`: retention and leases follow it, and nobody sleeps."""
    from streamkit.testing.clock import Clock

    return Clock()


@pytest.fixture
def streamkit_node(streamkit_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A real node in memory, for one test; clients without a url find it, too."""
    from streamkit.testing.node import Node

    with Node(clock=streamkit_clock) as node:
        monkeypatch.setenv("STREAMKIT_URL", node.url)
        yield node


@pytest.fixture
def streamkit_chaos() -> Callable[..., ChaosReport]:
    """`streamkit.testing.chaos`."""
    from streamkit.testing.weather import chaos

    return chaos
