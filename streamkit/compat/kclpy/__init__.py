"""amazon_kclpy's names, for record processors that run without it.

    from streamkit.compat import kclpy
    kclpy.install()                        # before `from amazon_kclpy import kcl`

Not the KCL itself: shards, leases and checkpoints are streamkit's. Called by programs that were written for
amazon_kclpy. Read `kcl.py`, the child's side of the protocol, and `v3/processor.py`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

_MODULES = ("", ".checkpoint_error", ".messages", ".dispatch", ".v2", ".v2.processor", ".v3", ".v3.processor", ".kcl")


def install() -> bool:
    """From now on `import amazon_kclpy` gives this package, unless that is installed; whether it does."""
    present = sys.modules.get("amazon_kclpy")
    if present is not None:
        return present is sys.modules[__name__]
    if find_spec("amazon_kclpy") is not None:
        return False
    for name in _MODULES:
        sys.modules[f"amazon_kclpy{name}"] = import_module(f"{__name__}{name}")
    return True
