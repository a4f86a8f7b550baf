"""KinesisProducer with the KPL's names, on our own Producer: no child process, order within a key, bounded memory.

    producer = KinesisProducer({"RecordMaxBufferedTime": 50})
    future = producer.add_user_record("orders", "customer-7", b"...")
    print(future.result().sequence_number)

A future costs no lock and no call to an event loop until somebody waits for it. Settings are those of the KPL, see
`kpl_settings.py`; `producer.native` is the Producer beneath, for all that the KPL has no name for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from streamkit.compat.kpl_settings import KplSettings, NamesFile, kpl_settings, read_kpl_properties
from streamkit.errors import PutFailed, RecordTooLarge, StreamkitError, TimedOut
from streamkit.observability.producer_numbers import Distribution, ProducerNumbers
from streamkit.producer.entry import PutResult
from streamkit.producer.producer import Handle, Producer


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One record for add_user_record. explicit_hash_key: decimal text or a number."""

    stream_name: str
    partition_key: str
    data: bytes
    explicit_hash_key: str | int | None = None


class Attempt(NamedTuple):
    """One try to send a record. delay, duration: milliseconds; delay counts from the try before, or from the put."""

    delay: int
    duration: int
    error_message: str | None
    error_code: str | None
    successful: bool


@dataclass(frozen=True, slots=True)
class UserRecordResult:
    """Where a record is, or, when not `successful`, what was tried; shard_id and sequence_number are None then."""

    successful: bool
    shard_id: str | None
    sequence_number: str | None
    attempts: tuple[Attempt, ...]


class UserRecordFailedException(Exception):
    """A record was not stored. result: what was tried; user_record: with ReturnUserRecordOnFailure.

    Its __cause__ is one of streamkit.errors.
    """

    def __init__(self, message: str, result: UserRecordResult, user_record: UserRecord | None) -> None:
        super().__init__(message)
        self.result = result
        self.user_record = user_record


class UserRecordFuture:
    """The fate of one record: a UserRecordResult, from any thread or event loop."""

    __slots__ = ("_handle", "_record")

    def __init__(self, handle: Handle, record: UserRecord | None) -> None:
        self._handle = handle
        self._record = record

    def done(self) -> bool:
        return self._handle.done()

    def result(self, timeout: float | None = None) -> UserRecordResult:
        """Waits `timeout` seconds (None: RecordTtl at most). Raises UserRecordFailedException, TimeoutError."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._stored()

    def exception(self, timeout: float | None = None) -> UserRecordFailedException | None:
        """What result() would raise, or None. Raises TimeoutError."""
        try:
            error = self._handle.exception(timeout)
        except TimedOut as cause:
            raise TimeoutError(str(cause)) from cause
        return None if error is None else self._failed(error)

    def add_done_callback(self, callback: Callable[[UserRecordFuture], object]) -> None:
        """Call `callback(future)` when it is done, on the producer's event loop; at once when it is done already."""
        self._handle.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, UserRecordResult]:
        try:
            yield from self._handle.__await__()
        except StreamkitError as error:
            raise self._failed(error) from error
        return self._stored()

    def _stored(self) -> UserRecordResult:
        found: PutResult = self._handle.result()
        return UserRecordResult(True, found.shard, found.sequence_number, self._attempts(None))

    def _failed(self, error: BaseException) -> UserRecordFailedException:
        failure = UserRecordFailedException(
            str(error), UserRecordResult(False, None, None, self._attempts(error)), self._record
        )
        failure.__cause__ = error
        return failure

    def _attempts(self, error: BaseException | None) -> tuple[Attempt, ...]:
        # What ended a record without a try of its own is told as one, as the KPL does.
        tried = [
            Attempt(round(each.pause_s * 1000), round(each.duration_s * 1000),
                    None if each.error is None else str(each.error), _code(each.error), each.error is None)
            for each in self._handle.attempts
        ]  # fmt: skip
        if error is not None and (not tried or tried[-1].error_code != _code(error)):
            tried.append(Attempt(0, 0, str(error), _code(error), False))
        return tuple(tried)


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure under the KPL's name, counted since the producer was made. Times in milliseconds."""

    name: str
    dimensions: Mapping[str, str]
    sample_count: float
    sum: float

    @property
    def mean(self) -> float:
        return self.sum / self.sample_count if self.sample_count else 0.0


class KinesisProducer:
    """The KPL's producer.

    configuration: KPL keys and values, or the path of a properties file. url: as Producer's; settings: Producer's,
    which win over the configuration. Raises InvalidConfig.
    """

    def __init__(
        self, configuration: Mapping[str, object] | str | NamesFile | None = None, *, url: Any = None, **settings: Any
    ) -> None:
        if configuration is None:
            configuration = {}
        said = configuration if isinstance(configuration, Mapping) else read_kpl_properties(configuration)
        self.settings: KplSettings = kpl_settings(said)
        self.native = Producer(url=url, **{"codec": "bytes", **self.settings.producer, **settings})

    def add_user_record(
        self,
        stream: str | UserRecord,
        partition_key: str = "",
        data: bytes | bytearray | memoryview = b"",
        explicit_hash_key: str | int | None = None,
    ) -> UserRecordFuture:
        """Take a record, or a UserRecord; waits only for room in the buffer. Records of one key keep their order.

        Raises as Producer.put; RecordTooLarge also above MaxUserRecordSize.
        """
        if isinstance(stream, UserRecord):
            return self.add_user_record(
                stream.stream_name, stream.partition_key, stream.data, stream.explicit_hash_key
            )
        data = data if isinstance(data, bytes) else bytes(data)
        if len(data) > self.settings.record_bytes_max:
            raise RecordTooLarge(
                f"the record has {len(data)} bytes, MaxUserRecordSize is {self.settings.record_bytes_max}",
                try_="raise MaxUserRecordSize, or store the payload elsewhere and put its address",
                size_bytes=len(data), limit_bytes=self.settings.record_bytes_max,
            )  # fmt: skip
        handle = self.native.put(
            data, key=partition_key, stream=stream,
            explicit_hash_key=None if explicit_hash_key is None else int(explicit_hash_key),
        )  # fmt: skip
        kept = UserRecord(stream, partition_key, data, explicit_hash_key) if self.settings.return_records else None
        return UserRecordFuture(handle, kept)

    def get_outstanding_records_count(self, stream: str | None = None) -> int:
        """Records without an outcome."""
        return sum(each.outstanding for each in self.native.numbers() if stream in (None, each.stream))

    def get_oldest_record_time_in_millis(self) -> int:
        """Age of the oldest record without an outcome; 0 when there is none."""
        return max((each.oldest_ms for each in self.native.numbers()), default=0)

    def flush(self, stream: str | None = None) -> None:
        """Send what waits for company now; returns at once."""
        self.native.start_flush(stream)

    def flush_sync(self, timeout: float | None = None) -> None:
        """Wait until every record that was added before has an outcome. Raises TimeoutError after `timeout` seconds."""
        try:
            self.native.flush(timeout)
        except PutFailed:
            pass                             # their futures tell; the KPL's flushSync does not
        except TimedOut as cause:
            raise TimeoutError(str(cause)) from cause

    def destroy(self) -> None:
        """End at once: futures that are not done fail. Call flush_sync first to lose nothing."""
        with contextlib.suppress(PutFailed):
            self.native.close(0)

    def __enter__(self) -> KinesisProducer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush_sync()
        self.destroy()

    def get_metrics(self, metric_name: str | None = None) -> list[Metric]:
        """Figures under the KPL's names, by stream; `native.stats()` has more of them, with percentiles."""
        found = [metric for stream in self.native.numbers() for metric in _metrics(stream)]
        return [metric for metric in found if metric_name in (None, metric.name)]


def _code(error: BaseException | None) -> str | None:
    if error is None:
        return None
    return "Expired" if isinstance(error, TimedOut) else getattr(error, "code", type(error).__name__)


def _metrics(n: ProducerNumbers) -> list[Metric]:
    stream = {"StreamName": n.stream}

    def one(name: str, total: float, samples: float | None = None, **dimensions: str) -> Metric:
        return Metric(name, stream | dimensions, total if samples is None else samples, total)

    def spread(name: str, of: Distribution, scale: float = 1) -> Metric:
        return Metric(name, stream, of.count, of.total * scale)

    batches = n.batch_records.count
    return [
        one("UserRecordsReceived", n.records),
        one("UserRecordsPending", n.outstanding, 1),
        one("UserRecordsPut", n.stored),
        one("UserRecordsDataPut", n.bytes),
        one("KinesisRecordsPut", batches),
        one("KinesisRecordsDataPut", n.sent_bytes),
        *(one("ErrorsByCode", count, ErrorCode=code) for code, count in sorted(n.retries.items())),
        one("AllErrors", sum(n.retries.values())),
        one("RetriesPerRecord", sum(n.retries.values()), batches),
        one("UserRecordExpired", n.failures.get("timed_out", 0)),
        spread("BufferingTime", n.queue, 1000),
        spread("RequestTime", n.request, 1000),
        spread("UserRecordsPerKinesisRecord", n.batch_records),
        one("KinesisRecordsPerPutRecordsRequest", batches, batches),
        spread("UserRecordsPerPutRecordsRequest", n.batch_records),
    ]
