"""Room for the metadata on a disk that is full: a file that is given up when nothing else can be written.

What frees a full disk, a stream's deletion, has to be written down first. Called by sqlite_store on its thread.
"""

from __future__ import annotations

import contextlib

from streamkit.runtime.interfaces import Disk

RESERVE_BYTES = 1024 * 1024
_PLENTY_BYTES = 64 * 1024 * 1024       # free space from which the file is made again


class Reserve:
    """`path`, RESERVE_BYTES of it written and synced, while there is room. Nothing here raises: it is a precaution."""

    def __init__(self, path: str, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._there = False

    def make(self) -> None:
        """Unless it is there whole; a disk without room for it goes without."""
        self._there = True
        try:
            file = self._disk.open(self.path, create=True)
        except OSError:
            return
        try:
            if file.size() != RESERVE_BYTES:
                file.truncate(0)
                file.write((bytes(RESERVE_BYTES),), 0)
                file.sync()
        except OSError:
            self.give_up()
        finally:
            file.close()

    def make_again(self) -> None:
        """If it was given up, and there is plenty of space by now."""
        if self._there:
            return
        with contextlib.suppress(OSError):
            if self._disk.free_bytes(self.path.rpartition("/")[0] or ".") >= _PLENTY_BYTES:
                self.make()
                self._there = True     # one attempt: a quota may leave less room than the disk shows

    def give_up(self) -> None:
        """Its room is for whoever writes next."""
        self._there = False
        with contextlib.suppress(OSError):
            self._disk.remove(self.path)
