"""What the Kinesis face does for each record. 500x100B: entries of 100-byte data with keys such as customer-17."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from streamkit._core.batch import Batch, seal, stamped
from streamkit._core.entries import PutEntries
from streamkit._core.framing import PutReceipt
from streamkit._core.hashing import ShardTable
from streamkit._core.replies import encode_records, frame_event
from streamkit.model.shard import even_ranges
from tests.oracles_gateway import cbor_loads, put_body

NOISE = random.Random(20_26)
# Half noise, half repetition: lz4 leaves a little more than half.
RECORDS = [(f"customer-{i % 500}", NOISE.randbytes(50) + b"x" * 50) for i in range(10_000)]
ENTRIES = [{"Data": data, "PartitionKey": key} for key, data in RECORDS[:500]]
BODIES = {cbor: put_body(ENTRIES, {"StreamName": "orders"}, cbor=cbor, single=False) for cbor in (False, True)}
TABLE = ShardTable(even_ranges(4))
ORIGINS = [(i, 1_700_000_000_000) for i in range(4)]
STORED = [
    stamped(seal([(key.encode(), data, b"", None, None) for key, data in RECORDS[at : at + 1_000]], codec=0),
            base_sequence=at, append_time_ms=1_700_000_000_123, shard_uuid=bytes(16))
    for at in range(0, 10_000, 1_000)
]
FORMATS = pytest.mark.parametrize("cbor", [False, True], ids=["json", "cbor"])
CODECS = pytest.mark.parametrize("codec", [0, 1], ids=["none", "lz4"])


@FORMATS
@CODECS
def bench_scan_pack_reply_500x100B(benchmark: Any, cbor: bool, codec: int) -> None:
    """The whole of PutRecords but for the append itself."""
    body = BODIES[cbor]

    def answer() -> bytes:
        put = PutEntries(body, cbor=cbor, single=False)
        assert not put.violations() and put.bad_hash_key() is None and put.largest() <= 1 << 20
        packed = put.pack(TABLE, codec=codec, map_version=1)
        return put.reply(packed, [PutReceipt(7, 1_700_000_000_123, 1)] * len(packed), ORIGINS)

    benchmark.extra_info["records"] = 500
    reply = benchmark(answer)
    assert len((cbor_loads(reply) if cbor else json.loads(reply))["Records"]) == 500


@FORMATS
def bench_scan_500x100B(benchmark: Any, cbor: bool) -> None:
    benchmark.extra_info["records"] = 500
    assert benchmark(PutEntries, BODIES[cbor], cbor=cbor, single=False).payload_bytes == sum(
        len(key) + len(data) for key, data in RECORDS[:500])


@CODECS
def bench_pack_500x100B(benchmark: Any, codec: int) -> None:
    put = PutEntries(BODIES[False], cbor=False, single=False)
    benchmark.extra_info["records"] = 500
    packed = benchmark(put.pack, TABLE, codec=codec, map_version=1)
    assert sorted(value for one in packed for value in Batch(one.batch).values()) == sorted(
        data for _, data in RECORDS[:500])


def bench_scan_pack_reply_one_record(benchmark: Any) -> None:
    body = put_body(ENTRIES[:1], {"StreamName": "orders"}, cbor=False, single=True)

    def answer() -> bytes:
        put = PutEntries(body, cbor=False, single=True)
        put.violations()
        return put.reply(put.pack(TABLE, codec=0, map_version=1), [PutReceipt(7, 1_700_000_000_123, 1)], ORIGINS)

    assert json.loads(benchmark(answer))["SequenceNumber"]


@FORMATS
def bench_encode_records_10000x100B(benchmark: Any, cbor: bool) -> None:
    benchmark.extra_info["records"] = 10_000
    found = benchmark(encode_records, STORED, 0, count_max=10_000, bytes_max=10 << 20, ordinal=0,
                      created_ms=1_700_000_000_000, cbor=cbor, kms=False)
    decoded = cbor_loads(found.body) if cbor else json.loads(found.body)
    data = [one["Data"] if cbor else base64.b64decode(one["Data"]) for one in decoded]
    assert data == [value for _, value in RECORDS]


def bench_frame_event_1MiB(benchmark: Any) -> None:
    payload = NOISE.randbytes(1 << 20)
    headers = [(":message-type", "event"), (":event-type", "SubscribeToShardEvent"),
               (":content-type", "application/x-amz-json-1.1")]
    benchmark.extra_info["bytes"] = len(payload)
    assert payload in benchmark(frame_event, headers, payload)
