"""In which order an application's records are handled within a shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streamkit.errors import InvalidUse

LANES_MAX = 256


@dataclass(frozen=True, slots=True)
class Ordering:
    """`Ordering.SHARD`: one record after the other. `Ordering.by_key(8)`: records of one key one after the other, those
    of other keys beside them, in eight lanes. `Ordering.none(8)`: in eight lanes without any order.

    lanes: 1 to 256, of each shard. A record that fails holds up the records of its key alone. What is
    finished in all lanes is stored with every checkpoint, so that a crash brings back only what was in hand.
    """

    within: Literal["shard", "key", "nothing"] = "shard"
    lanes: int = 1

    SHARD: ClassVar[Ordering]

    def __post_init__(self) -> None:
        if not isinstance(self.lanes, int) or not 1 <= self.lanes <= LANES_MAX:
            raise InvalidUse(f"an ordering has 1 to {LANES_MAX} lanes; got {self.lanes!r}", try_="Ordering.by_key(8)",
                             argument="lanes")

    @classmethod
    def by_key(cls, lanes: int) -> Ordering:
        """Raises InvalidUse."""
        return cls("key", lanes)

    @classmethod
    def none(cls, lanes: int) -> Ordering:
        """Raises InvalidUse."""
        return cls("nothing", lanes)


Ordering.SHARD = Ordering()
