"""For programs that were written for Amazon's libraries: they run on streamkit as they are.

Not the Kinesis API over HTTP (`gateway` speaks that): these are libraries, in front of our own Producer and Worker.
Called by users, and by `streamkit kcl`. Read `processors.py` for the KCL's record processors in Python, `child.py` for
those in other languages, `kpl.py` for the KPL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamkit.compat.kpl import KinesisProducer as KinesisProducer
    from streamkit.compat.kpl import UserRecord as UserRecord
    from streamkit.compat.kpl import UserRecordFailedException as UserRecordFailedException
    from streamkit.compat.processors import kclpy_processor as kclpy_processor

_HOMES = {
    "KinesisProducer": "streamkit.compat.kpl",
    "UserRecord": "streamkit.compat.kpl",
    "UserRecordFailedException": "streamkit.compat.kpl",
    "kclpy_processor": "streamkit.compat.processors",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'streamkit.compat' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
