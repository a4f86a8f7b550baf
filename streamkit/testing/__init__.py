"""For tests of programs that use streamkit: a real node in the test, a clock that can be turned, faults on demand.

    from streamkit.testing import Clock, Node

Nothing here is a stand-in: `Node` is the node that `streamkit serve` runs, `chaos` runs a consumer in the simulator's
world. pytest finds the fixtures `streamkit_node`, `streamkit_clock` and `streamkit_chaos` by itself. Not imported by
any room of the package. Called by users' tests. Read `node.py` first, then `weather.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamkit.testing.clock import Clock as Clock
    from streamkit.testing.node import Application as Application
    from streamkit.testing.node import Node as Node
    from streamkit.testing.report import ChaosReport as ChaosReport
    from streamkit.testing.weather import chaos as chaos

_HOMES = {
    "Application": "streamkit.testing.node",
    "ChaosReport": "streamkit.testing.report",
    "Clock": "streamkit.testing.clock",
    "Node": "streamkit.testing.node",
    "chaos": "streamkit.testing.weather",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'streamkit.testing' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
