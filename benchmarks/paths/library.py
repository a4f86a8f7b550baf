"""Loading through the library that users call: producers in bulk and one by one, readers and a worker.

Roles of `clients.py`; each checks that what it counted is what the shards hold.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.compute

from benchmarks.paths.clients import KEY_BYTES, VALUE_BYTES, Window, records
from benchmarks.paths.processes import check
from streamkit import Batch, Checkpointer, Client, Producer, Reader, RecordProcessor, Worker

CHUNK_RECORDS = 50_000


def stored(url: str, stream: str) -> int:
    """Records the shards hold, control batches taken out by counting one for each shard that was written."""
    with Client(url=url) as client:
        states = client.describe_shards(stream)
    return sum(s.high_watermark - s.log_start for s in states) - sum(1 for s in states if s.high_watermark)


def bulk(options: dict[str, Any]) -> dict[str, Any]:
    """Acceptance: producer 12. Columns of keys and values; acknowledged to the last row."""
    url, stream, count = options["url"], options["stream"], options["records"]
    window = Window(options["server_pids"])
    chunk = records(min(count, CHUNK_RECORDS))
    keys = pyarrow.array([key for key, _ in chunk], pyarrow.binary())
    values = pyarrow.array([value for _, value in chunk], pyarrow.binary())
    with Producer(stream, url=url, codec="bytes", compression="none") as producer:
        producer.put_columns(keys[:1000], values[:1000])
        producer.flush()
        warm = min(1000, len(keys))
        window.start()
        left = count
        while left:
            rows = min(left, len(keys))
            producer.put_columns(keys[:rows], values[:rows])
            left -= rows
        producer.flush()
        result = window.stop(count, count * (KEY_BYTES + VALUE_BYTES), "")
    check(stored(url, stream) == count + warm, f"{stored(url, stream)} stored of {count + warm}")
    return {**result, "checked": f"{count + warm:,} in the shards"}


def put(options: dict[str, Any]) -> dict[str, Any]:
    """Acceptance: producer 12. put() for each record from one thread; acknowledged to the last one."""
    url, stream, count = options["url"], options["stream"], options["records"]
    window = Window(options["server_pids"])
    chunk = [(key.decode(), value) for key, value in records(min(count, CHUNK_RECORDS))]
    with Producer(stream, url=url, codec="bytes", compression="none") as producer:
        for key, value in chunk[:1000]:
            producer.put(value, key=key)
        producer.flush()
        warm = min(1000, len(chunk))
        window.start()
        left = count
        while left:
            for key, value in chunk[:left]:
                producer.put(value, key=key)
            left -= min(left, len(chunk))
        producer.flush()
        result = window.stop(count, count * (KEY_BYTES + VALUE_BYTES), "")
    check(stored(url, stream) == count + warm, f"{stored(url, stream)} stored of {count + warm}")
    return {**result, "checked": f"{count + warm:,} in the shards"}


def _read(options: dict[str, Any], consume: Callable[[Reader], tuple[int, int]]) -> dict[str, Any]:
    window = Window(options["server_pids"])
    url, stream, total = options["url"], options["stream"], options["records"]
    consume(Reader(stream, start="trim_horizon", until="latest", limit=min(total, 1000), url=url))
    window.start()
    count, value_bytes = consume(Reader(stream, start="trim_horizon", until="latest", url=url))
    result = window.stop(count, count * (KEY_BYTES + VALUE_BYTES), "")
    check(count == total, f"{count} of {total} records came")
    check(value_bytes == total * VALUE_BYTES, f"{value_bytes} bytes of values came")
    return {**result, "checked": f"{total:,} records and their bytes"}


def read_objects(options: dict[str, Any]) -> dict[str, Any]:
    """A Record for each, its data taken."""

    def consume(reader: Reader) -> tuple[int, int]:
        count = value_bytes = 0
        for record in reader:
            count += 1
            value_bytes += len(record.data)
        return count, value_bytes

    return _read(options, consume)


def read_raw(options: dict[str, Any]) -> dict[str, Any]:
    """Whole batches as they lie on disk, counted; nothing is decoded."""
    window = Window(options["server_pids"])
    url, stream, total = options["url"], options["stream"], options["records"]
    window.start()
    count = raw_bytes = 0
    for batch in Reader(stream, start="trim_horizon", until="latest", url=url).batches():
        count += len(batch)
        raw_bytes += len(batch.raw)
    result = window.stop(count, count * (KEY_BYTES + VALUE_BYTES), "")
    check(count == total, f"{count} of {total} records came")
    check(raw_bytes > total * (KEY_BYTES + VALUE_BYTES), f"{raw_bytes} bytes of batches came")
    return {**result, "checked": f"{total:,} records"}


def read_values(options: dict[str, Any]) -> dict[str, Any]:
    """A list of bytes for each batch."""

    def consume(reader: Reader) -> tuple[int, int]:
        count = value_bytes = 0
        for batch in reader.batches():
            values = batch.values()
            count += len(values)
            value_bytes += sum(map(len, values))
        return count, value_bytes

    return _read(options, consume)


def read_arrow(options: dict[str, Any]) -> dict[str, Any]:
    """Arrow columns for each batch."""

    def consume(reader: Reader) -> tuple[int, int]:
        count = value_bytes = 0
        for batch in reader.batches():
            data = batch.to_arrow().column("data")
            count += len(data)
            value_bytes += pyarrow.compute.sum(pyarrow.compute.binary_length(data)).as_py()
        return count, value_bytes

    return _read(options, consume)


class _Counting(RecordProcessor):
    count = 0
    total = 0
    enough = threading.Event()
    lock = threading.Lock()

    def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
        found = sum(1 for record in batch if len(record.data) == VALUE_BYTES)
        with self.lock:
            _Counting.count += found
        checkpointer.checkpoint()
        if _Counting.count >= self.total:
            self.enough.set()


def consume(options: dict[str, Any]) -> dict[str, Any]:
    """A worker with leases and checkpoints; record objects."""
    window = Window(options["server_pids"])
    _Counting.total = options["records"]
    worker = Worker(
        options["stream"], application="counting", start="trim_horizon", processor=_Counting, url=options["url"]
    )
    window.start()
    worker.start()
    finished = _Counting.enough.wait(300)
    result = window.stop(_Counting.count, _Counting.count * (KEY_BYTES + VALUE_BYTES), "")
    worker.stop()
    check(finished and _Counting.count == _Counting.total, f"{_Counting.count} of {_Counting.total} records came")
    return {**result, "checked": f"{_Counting.count:,} records, each once; joining is in the time"}


COPIES = "copies"


class _Copying(RecordProcessor):
    producer: Producer | None = None       # None: in one transaction with the position

    def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
        if self.producer is None:
            for record in batch:
                checkpointer.put(COPIES, record.data, key=record.key)
            return
        for record in batch:
            self.producer.put(record.data, key=record.key)
        self.producer.flush()              # else the position might be past what is not stored
        checkpointer.checkpoint()


def _copy(options: dict[str, Any], *, transactional: bool) -> dict[str, Any]:
    url, total = options["url"], options["records"]
    window = Window(options["server_pids"])
    with Client(url=url) as client:
        client.create_stream(COPIES + ("-plain" if not transactional else ""), shards=4, durability="fsync")
    target = COPIES if transactional else COPIES + "-plain"
    _Copying.producer = None if transactional else Producer(target, url=url, codec="bytes")
    worker = Worker(
        options["stream"], application=target, start="trim_horizon", processor=_Copying, url=url,
        transactional=transactional,
    )  # fmt: skip
    window.start()
    worker.start()
    deadline = time.monotonic() + 300
    while stored(url, target) < total and time.monotonic() < deadline:
        time.sleep(0.02)                   # between two looks
    result = window.stop(total, total * (KEY_BYTES + VALUE_BYTES), "")
    worker.stop()
    if _Copying.producer is not None:
        _Copying.producer.close()
    check(stored(url, target) == total, f"{stored(url, target)} of {total} records were copied")
    return {**result, "checked": f"{total:,} copies, each once; joining is in the time"}


def copy_plain(options: dict[str, Any]) -> dict[str, Any]:
    """A worker that puts what it reads, flushes, and checkpoints: at least once."""
    return _copy(options, transactional=False)


def copy_transactional(options: dict[str, Any]) -> dict[str, Any]:
    """The same in one transaction a batch: exactly once."""
    return _copy(options, transactional=True)


ROLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bulk": bulk,
    "put": put,
    "read_objects": read_objects,
    "read_raw": read_raw,
    "read_values": read_values,
    "read_arrow": read_arrow,
    "consume": consume,
    "copy_plain": copy_plain,
    "copy_transactional": copy_transactional,
}
