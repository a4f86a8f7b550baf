"""Put records with boto3: PutRecords of up to 500 entries, and those that were refused again.

    python boto3_producer.py --stream flights --records 1000 --shards 2

boto3 finds the server in AWS_ENDPOINT_URL. Each record is {"key": …, "row": …}; rows count up within a key, so that a
reader can tell whether the order of a key was kept. Exits 1 when records were left over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import Any

import boto3

ENTRIES_MAX = 500              # a PutRecords takes no more
ATTEMPTS_MAX = 10


def put_all(client: Any, stream: str, entries: list[dict[str, Any]]) -> tuple[int, int]:
    """How many entries were put again, and how many are left over after the last attempt."""
    again = 0
    for attempt in range(ATTEMPTS_MAX):
        reply = client.put_records(StreamName=stream, Records=entries)
        # The results stand in the order of the entries: one that has an ErrorCode was not stored, all others were.
        results = zip(entries, reply["Records"], strict=True)
        entries = [entry for entry, result in results if result.get("ErrorCode")]
        if not entries:
            return again, 0
        again += len(entries)
        time.sleep(min(0.1 * 2**attempt, 2.0))     # longer each time: a shard that is over its rate needs time
    return again, len(entries)


def ensure_stream(client: Any, stream: str, shards: int) -> int:
    """Creates the stream when it is missing; how many open shards it has."""
    with contextlib.suppress(client.exceptions.ResourceInUseException):         # it exists already
        client.create_stream(StreamName=stream, ShardCount=shards)
    client.get_waiter("stream_exists").wait(StreamName=stream, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    return client.describe_stream_summary(StreamName=stream)["StreamDescriptionSummary"]["OpenShardCount"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stream", default="example")
    parser.add_argument("--records", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0, help="row of the first record (default: 0)")
    parser.add_argument("--keys", type=int, default=50, help="partition keys to spread them over (default: 50)")
    parser.add_argument("--shards", type=int, default=1, help="of a stream that is created now (default: 1)")
    parser.add_argument("--endpoint", help="instead of AWS_ENDPOINT_URL")
    arguments = parser.parse_args()

    client = boto3.client("kinesis", endpoint_url=arguments.endpoint)
    shards = ensure_stream(client, arguments.stream, arguments.shards)

    began, again, left = time.monotonic(), 0, 0
    rows = range(arguments.first, arguments.first + arguments.records)
    for start in range(0, len(rows), ENTRIES_MAX):
        entries = []
        for row in rows[start : start + ENTRIES_MAX]:
            key = f"key-{row % arguments.keys}"
            entries.append({"PartitionKey": key, "Data": json.dumps({"key": key, "row": row}).encode()})
        repeated, lost = put_all(client, arguments.stream, entries)
        again, left = again + repeated, left + lost
    stored = len(rows) - left
    print(f"{stored} records stored in {shards} shards, {again} put again, {time.monotonic() - began:.2f} s")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
