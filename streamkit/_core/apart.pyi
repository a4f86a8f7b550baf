from typing import Any

from streamkit._core.accumulator import Accumulator, SealedBatch
from streamkit._core.hashing import ShardTable
from streamkit._core.outcome import PutHandle

def waits_for(accumulator: Accumulator, handle: PutHandle[Any]) -> int: ...
def index_in(sealed: SealedBatch, handle: PutHandle[Any]) -> int: ...
def take_apart(
    accumulator: Accumulator,
    sealed: SealedBatch,
    targets: ShardTable,
    leave: list[PutHandle[Any]] | None = None,
    error: Exception | None = None,
) -> list[int]: ...
