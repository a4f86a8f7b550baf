"""What the operating system's errors of a disk mean: no room for now, records that are gone, or a disk to give up."""

from __future__ import annotations

from streamkit.errors import DiskFailed, DiskFull

FULL = (28, 122)                               # ENOSPC, EDQUOT
MEDIUM = (5, 61, 74, 84, 117)                  # EIO, ENODATA, EBADMSG, EILSEQ, EUCLEAN: all else passes
FULL_RETRY_SECONDS = 0.05


def cannot_open(cause: OSError, path: str) -> DiskFull | DiskFailed:
    """The error for a file that could not be opened or made."""
    if cause.errno in FULL:
        return DiskFull(
            f"no space left to open {path}", try_="free space or add a disk", free_bytes=0, floor_bytes=0, path=path
        )
    return DiskFailed(
        f"cannot open {path}: {cause.strerror}", try_="look at the disk, then restart the node",
        path=path, errno=cause.errno,
    )  # fmt: skip
