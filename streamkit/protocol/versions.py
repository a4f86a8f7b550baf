"""Which versions of the wire this build speaks, and how two ends agree on one.

The client offers a range, the broker answers with the highest version that both know. Version numbers grow
by one when a frame or a message changes in a way that an older reader would misread; fields added at the
end of a message do not count.
"""

from __future__ import annotations

from streamkit.errors import ProtocolMismatch

VERSION_MIN = 1
VERSION_MAX = 1


def negotiate(theirs_min: int, theirs_max: int) -> int:
    """The version to speak. Raises ProtocolMismatch when there is none in common."""
    version = min(theirs_max, VERSION_MAX)
    if version < max(theirs_min, VERSION_MIN):
        raise ProtocolMismatch(
            f"the client speaks protocol {theirs_min} to {theirs_max}, this broker {VERSION_MIN} to {VERSION_MAX}",
            try_="pip install --upgrade streamkit   (on the older side)",
            reason="version",
            theirs=theirs_max,
            ours=VERSION_MAX,
        )
    return version


def check_version(version: int) -> int:
    """The version that a broker chose. Raises ProtocolMismatch when it was not offered."""
    if not VERSION_MIN <= version <= VERSION_MAX:
        raise ProtocolMismatch(
            f"the broker chose protocol {version}, this client speaks {VERSION_MIN} to {VERSION_MAX}",
            try_="pip install --upgrade streamkit   (on the older side)",
            reason="version",
            theirs=version,
            ours=VERSION_MAX,
        )
    return version
