"""What is to be flushed, as the outside world sees it.

The forming of groups is in `_core.journal`; the real disk drives it from a C thread, the simulator through here.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamkit._core.journal import Journal
from streamkit.runtime.interfaces import FlushWrite


class GroupCommit:
    """`runtime.FlushSource` over a journal. Errors without a number count as input/output errors."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def take(self) -> Sequence[FlushWrite] | None:
        job = self.journal.take_writes()
        if job is None:
            return None
        return [FlushWrite(file, position, buffers, sync) for file, position, buffers, sync in job]

    def finish(self, error: OSError | None) -> None:
        self.journal.finish(0 if error is None else error.errno or 5)
