"""How long records wait, how many travel together, how much may be held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamkit._core.batch import require_codec
from streamkit.errors import InvalidConfig
from streamkit.model import limits

COMPRESSIONS = ("none", "lz4", "zstd")     # in the order of the batch header's codec numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerConfig:
    linger_ms: float = 20                    # longest a record waits for company while earlier batches are on their way
    batch_bytes_max: int = 512 * 1024        # uncompressed; a batch of this size leaves at once
    batch_records_max: int = 10_000
    buffer_bytes_max: int = 64 * 1024 * 1024  # open, sealed and in flight
    on_full: Literal["wait", "raise", "drop_new"] = "wait"
    max_block_ms: int = 30_000               # longest that a put waits for room; then it raises BufferFull
    shard_share: float = 0.5                 # of the buffer, the most that one shard may hold while there are others
    fail_if_throttled: bool = False          # a throttled record fails at once instead of waiting
    compression: Literal["none", "lz4", "zstd"] = "lz4"
    idempotent: bool = True
    on_failure: Literal["continue", "halt_key", "halt"] = "continue"     # what a failure means for what is behind it
    name: str | None = None                  # of which there is one instance at a time; None: nobody asks
    in_flight_max: int = 5                   # batches a shard; a shard recognises the last limits.PRODUCER_WINDOW
    delivery_timeout_ms: int = 120_000       # from put to an outcome: waiting, sending and retrying
    request_timeout_ms: int = 10_000
    retry_first_ms: int = 50
    retry_most_ms: int = 1_000
    exit_flush_ms: int = 5_000               # granted when the interpreter ends with the producer open

    def __post_init__(self) -> None:
        self._within("linger_ms", 0, 60_000)
        self._within("batch_bytes_max", 1, 1024 * 1024)
        self._within("batch_records_max", 1, limits.BATCH_RECORDS_MAX)
        self._within("buffer_bytes_max", 1, 1 << 40)
        self._within("in_flight_max", 1, limits.PRODUCER_WINDOW)
        self._within("delivery_timeout_ms", 1, 1 << 31)
        self._within("request_timeout_ms", 1, 1 << 31)
        self._within("max_block_ms", 0, 1 << 31)
        self._within("shard_share", 0.01, 1.0)
        self._one_of("on_full", ("wait", "raise", "drop_new"))
        self._one_of("on_failure", ("continue", "halt_key", "halt"))
        self._one_of("compression", COMPRESSIONS)
        if self.name is not None and not (0 < len(self.name) <= 256 and self.name.isprintable()):
            raise InvalidConfig(f"name must be 1..256 printable characters, got {len(self.name)}",
                                try_="choose a shorter name, or None", key="name", value=self.name[:80])  # fmt: skip
        if self.name is not None and not self.idempotent:
            raise InvalidConfig("a named producer is idempotent", try_="leave idempotent as it is", key="idempotent",
                                value=False)  # fmt: skip
        require_codec(COMPRESSIONS.index(self.compression))

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise InvalidConfig(f"{name} must be {low}..{high}, got {value}", try_=f"choose {name} in that range",
                                key=name, value=value)  # fmt: skip

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise InvalidConfig(f"{name} must be one of {', '.join(allowed)}, got {value!r}",
                                try_=f"choose {name} from these", key=name, value=value)  # fmt: skip
