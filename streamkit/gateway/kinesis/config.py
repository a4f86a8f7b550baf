"""What can be set for the Kinesis API."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Throttles, a second and shard unless it says otherwise; 0: off. AWS's own values are in `AWS_LIMITS`."""

    shard_write_records: int = 0
    shard_write_bytes: int = 0
    shard_read_bytes: int = 0              # of all GetRecords together
    shard_read_calls: int = 0
    iterator_calls: int = 0
    control_plane: bool = False            # the rates of the calls on streams and consumers, by account
    subscribe_calls: int = 0               # by consumer and shard


AWS_LIMITS = Limits(
    shard_write_records=1_000, shard_write_bytes=1 << 20, shard_read_bytes=2 << 20, shard_read_calls=5,
    iterator_calls=5, control_plane=True, subscribe_calls=1,
)
LIMITS_TAG = "streamkit:limits"            # a stream's tag: "aws" switches its limits on, "off" those of the server off


@dataclass(frozen=True, slots=True, kw_only=True)
class KinesisConfig:
    """account, region: of the default name space, whose streams carry their own names.

    retention_hours: of a stream that is made through this API. consumers_max: registered, by stream.
    """

    account: str = "000000000000"
    region: str = "us-east-1"
    retention_hours: int = 24
    limits: Limits = Limits()
    consumers_max: int = 1_000
    shards_max: int = 1_000_000            # what DescribeLimits says; what a node takes is streams.shards_max
    request_ms: int = 5_000                # how long a put looks for a leader before the client is asked to try again
    subscription_seconds: float = 300.0
    subscription_idle_seconds: float = 4.0  # an event at least that often
    subscriptions_max: int = 4_000         # at once; each may hold an event of 256 KiB that its reader does not take
    take_over_seconds: float = 5.0
    put_throttle: float = 0.0              # this share of puts is refused, to try out a program's retries
    settle_seconds: float = 0.05           # how long a change is waited for before it is answered as under way
    lag_seconds: float = 0.0               # in a cluster: until this node has surely heard what another has changed
