"""Libraries that only some need, loaded when they do: each belongs to an extra of the package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from streamkit.errors import MissingLibrary


def library(module: str, extra: str) -> Any:
    """The module. Raises MissingLibrary with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as cause:
        name = module.partition(".")[0]
        raise MissingLibrary(
            f"{name} is not installed: {cause}", try_=f"pip install 'streamkit[{extra}]'", library=name, extra=extra
        ) from cause
