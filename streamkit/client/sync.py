"""Client: AsyncClient for callers that are not coroutines."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from streamkit.client.applications import ResetPlan
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.client.lag import Lag
from streamkit.client.operations import AsyncOperation, Operation, SplitAt
from streamkit.client.pool import Connector
from streamkit.model import limits
from streamkit.model.fate import Fate
from streamkit.model.note import Note
from streamkit.model.position import Position
from streamkit.model.shard import Shard
from streamkit.model.stream import UNCHANGED, Durability, StreamConfig, StreamDescription, Unchanged
from streamkit.protocol import messages as m
from streamkit.protocol.frames import Fetched, PutReceipt
from streamkit.runtime.interfaces import Buffer, Runtime
from streamkit.runtime.real import LoopThread

T = TypeVar("T")


class Client:
    """A broker, asked from any thread. Each method is AsyncClient's of the same name, run on a background loop.

    loop_thread: the loop to run on; the process's shared one when it is None.
    """

    def __init__(
        self,
        url: str | Connector | None = None,
        runtime: Runtime | None = None,
        *,
        config: ClientConfig | None = None,
        loop_thread: LoopThread | None = None,
    ) -> None:
        self._thread = loop_thread or LoopThread.shared()
        self._client = AsyncClient(url, runtime, config=config)
        self._closed = False

    @property
    def address(self) -> str:
        return self._client.address

    def connect(self) -> str:
        return self._run(self._client.connect())

    def close(self) -> None:
        if not self._closed and self._thread.alive:
            self._closed = True
            self._run(self._client.close())

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_stream(
        self,
        name: str,
        config: StreamConfig | None = None,
        *,
        shards: int = 1,
        retention_hours: int = limits.RETENTION_HOURS_DEFAULT,
        retention_bytes: int | None = None,
        durability: Durability | str = Durability.FSYNC,
        record_bytes_max: int = limits.RECORD_BYTES_MAX_DEFAULT,
        codec: str = "auto",
    ) -> StreamDescription:
        """Settings come as one StreamConfig or one by one. Raises StreamExists, InvalidRequest, LimitReached."""
        return self._run(
            self._client.create_stream(
                name,
                config,
                shards=shards,
                retention_hours=retention_hours,
                retention_bytes=retention_bytes,
                durability=durability,
                record_bytes_max=record_bytes_max,
                codec=codec,
            )
        )

    def describe_stream(self, name: str) -> StreamDescription:
        """Asks the brokers, also for the shards' rates. Raises StreamNotFound."""
        return self._run(self._client.describe_stream(name))

    def stream(self, name: str, refresh: bool = False) -> StreamDescription:
        return self._run(self._client.stream(name, refresh))

    def list_streams(self) -> list[StreamDescription]:
        """All streams by name, without their shards."""
        return self._run(self._client.list_streams())

    def delete_stream(self, name: str) -> None:
        """The stream and all its records. Raises StreamNotFound."""
        self._run(self._client.delete_stream(name))

    def alter_stream(
        self,
        name: str,
        *,
        retention_hours: int | None = None,
        retention_bytes: int | Unchanged | None = UNCHANGED,
        record_bytes_max: int | None = None,
    ) -> StreamDescription:
        """Change settings of a stream; what is not named stays. retention_bytes None: no bound by size."""
        return self._run(
            self._client.alter_stream(
                name,
                retention_hours=retention_hours,
                retention_bytes=retention_bytes,
                record_bytes_max=record_bytes_max,
            )
        )

    def split_shard(self, name: str, shard: str | int, at: SplitAt = "middle") -> Operation:
        """Close a shard (its id or ordinal) and give its keys to two others; returns once that is certain to happen.

        at: first hash key of the second; "middle" of the range; or "traffic": where the bytes of the last ten minutes
        part into halves, the middle when there were too few, and InvalidRequest when they nearly all have one key.
        A change that is under way already is waited for. Raises ShardNotFound, ShardClosed, InvalidRequest, StreamBusy.
        """
        return self._begin(lambda: self._client.split_shard(name, shard, at))

    def merge_shards(self, name: str, *shards: str | int) -> Operation:
        """Close neighbouring shards (ids or ordinals) and give their keys to one other; as `split_shard`."""
        return self._begin(lambda: self._client.merge_shards(name, *shards))

    def scale_stream(self, name: str, shards: int) -> Operation:
        """Split and merge until `shards` shards of nearly equal ranges are open; as `split_shard`."""
        return self._begin(lambda: self._client.scale_stream(name, shards))

    def operation(self, id: str) -> Operation:
        """Follow again what another client began, perhaps; unknown ones fail in `wait`."""
        return self._begin(lambda: self._client.operation(id))

    def _begin(self, begin: Callable[[], AsyncOperation]) -> Operation:
        async def accepted() -> AsyncOperation:
            operation = begin()
            await operation.accepted()
            return operation

        return Operation(self._run(accepted()), self._run)

    def describe_shards(self, name: str) -> tuple[m.ShardState, ...]:
        """How much each shard holds, in ordinal order. Raises StreamNotFound."""
        return self._run(self._client.describe_shards(name))

    def describe_application(self, name: str) -> m.ApplicationDescribed:
        return self._run(self._client.describe_application(name))

    def reset_application(
        self, name: str, to: str | datetime | Position, *, shards: Sequence[str] = (), stream: str | None = None,
        dry_run: bool = False,
    ) -> ResetPlan:
        return self._run(self._client.reset_application(name, to, shards=shards, stream=stream, dry_run=dry_run))

    def undo_reset(self, name: str) -> None:
        self._run(self._client.undo_reset(name))

    def export_positions(self, name: str) -> dict[str, Any]:
        return self._run(self._client.export_positions(name))

    def import_positions(self, name: str, document: Mapping[str, Any], *, dry_run: bool = False) -> ResetPlan:
        return self._run(self._client.import_positions(name, document, dry_run=dry_run))

    def pause_application(self, name: str, reason: str = "") -> None:
        self._run(self._client.pause_application(name, reason))

    def resume_application(self, name: str) -> None:
        self._run(self._client.resume_application(name))

    def delete_application(self, name: str) -> None:
        self._run(self._client.delete_application(name))

    def check_application(self, name: str) -> tuple[str, ...]:
        return self._run(self._client.check_application(name))

    def resolve_position(self, shard: Shard, position: str | datetime | Position) -> m.PositionResolved:
        return self._run(self._client.resolve_position(shard, position))

    def new_producer(self, name: str = "") -> m.ProducerGiven:
        return self._run(self._client.new_producer(name))

    def lag(self, application: str) -> Lag:
        """How far the application is behind; needs no running worker. Raises ApplicationNotFound."""
        return self._run(self._client.lag(application))

    def list_applications(self) -> tuple[str, ...]:
        """Every application that ever joined and was not deleted."""
        return self._run(self._client.list_applications())

    def resolve(self, token: str) -> Fate:
        """What became of a record whose put failed with OutcomeUnknown; token: of the error's facts."""
        return self._run(self._client.resolve(token))

    def describe_node(self) -> m.NodeDescribed:
        return self._run(self._client.describe_node())

    def read_note(self, key: str) -> tuple[bytes | None, int]:
        """A small document kept beside the streams, and its revision; (None, 0) when there is none."""
        return self._run(self._client.read_note(key))

    def swap_notes(self, swaps: Sequence[tuple[str, int, bytes | None]]) -> int | None:
        """Change notes together, each (key, its revision, new value): all or none. None: a revision was another."""
        return self._run(self._client.swap_notes(swaps))

    def list_notes(self, prefix: str, *, after: str = "", count_max: int = 1000) -> list[Note]:
        """The first notes whose keys begin with `prefix` and follow `after`, in key order."""
        return self._run(self._client.list_notes(prefix, after=after, count_max=count_max))

    def put_batch(self, shard: Shard, batch: Buffer, timeout_ms: int | None = None) -> PutReceipt:
        """Waits for the receipt."""
        return self._run(self._put(shard, batch, timeout_ms))

    def fetch(self, shard: Shard, start: int, *, bytes_max: int = 4 << 20, wait_ms: int = 500) -> Fetched:
        return self._run(self._client.fetch(shard, start, bytes_max=bytes_max, wait_ms=wait_ms))

    def call(self, message: m.Message, *, timeout_ms: int | None = None) -> m.Message:
        return self._run(self._client.call(message, timeout_ms=timeout_ms))

    async def _put(self, shard: Shard, batch: Buffer, timeout_ms: int | None) -> PutReceipt:
        return await self._client.put_batch(shard, batch, timeout_ms=timeout_ms)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.run(work)
