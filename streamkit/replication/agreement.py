"""Where two logs part, told from their epoch tables alone.

A log is a row of runs, one for each epoch that appended to it. Each epoch had one leader, and a leader only ever
appends: so two logs that hold the same epoch at a place hold the same bytes up to there.
"""

from __future__ import annotations

from collections.abc import Sequence

Epochs = Sequence[tuple[int, int]]             # (epoch, sequence of its first record), both growing


def epoch_at(epochs: Epochs, sequence: int) -> int:
    """The epoch of the record at `sequence`; 0 when the table does not reach back that far."""
    for epoch, start in reversed(epochs):
        if start <= sequence:
            return epoch
    return 0


def run_start(epochs: Epochs, sequence: int) -> int:
    """Where the run that holds `sequence` begins; 0 when the table does not reach back that far."""
    for _, start in reversed(epochs):
        if start <= sequence:
            return start
    return 0


def agreement(ours: Epochs, our_end: int, theirs: Epochs, their_end: int) -> int:
    """One past the last record that both logs hold alike; 0 when their tables have no epoch in common.

    Records before the first run of a table were removed by retention, which removes only what is committed.
    """
    common = {epoch for epoch, _ in ours} & {epoch for epoch, _ in theirs}
    if not common:
        return 0
    newest = max(common)
    return min(_run_end(ours, newest, our_end), _run_end(theirs, newest, their_end))


def _run_end(epochs: Epochs, epoch: int, log_end: int) -> int:
    return min((start for other, start in epochs if other > epoch), default=log_end)
