"""Read a stream with boto3: a shard iterator for each shard, children after their parents.

    python boto3_consumer.py --stream flights --records 1000

Reads from the oldest record until it has seen so many records, or all closed shards and `--seconds` are over. Prints
how many it read from each shard; a child is begun when GetRecords of its parents has come to their end. Exits 1 when
records are missing, came twice, or came out of the order of their key.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import boto3

PAUSE_SECONDS = 0.1            # between two looks at a shard that had nothing new


class Seen:
    """What was read so far: rows, by shard; and whether the rows of each key came in their order."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.by_shard: dict[str, int] = {}
        self.last_of_key: dict[str, int] = {}
        self.twice = self.out_of_order = 0

    def add(self, shard: str, records: list[dict[str, Any]]) -> None:
        self.by_shard[shard] = self.by_shard.get(shard, 0) + len(records)
        for record in records:
            document = json.loads(record["Data"])
            key, row = document["key"], document["row"]
            self.twice += row in self.rows
            self.out_of_order += row < self.last_of_key.get(key, -1)
            self.rows.add(row)
            self.last_of_key[key] = row

    def report(self, expected: int) -> int:
        """Prints it; the exit code."""
        for shard, count in sorted(self.by_shard.items()):
            print(f"  {shard}  {count}")
        print(
            f"{len(self.rows)} of {expected} records read from {len(self.by_shard)} shards, "
            f"{self.twice} twice, {self.out_of_order} out of order"
        )
        return 0 if len(self.rows) == expected and not self.twice and not self.out_of_order else 1


def roots(client: Any, stream: str) -> dict[str, set[str]]:
    """The shards to begin with, those without parents, by ID; the values are empty sets."""
    shards: list[dict[str, Any]] = []
    for page in client.get_paginator("list_shards").paginate(StreamName=stream):
        shards += page["Shards"]
    known = {shard["ShardId"] for shard in shards}
    return {
        shard["ShardId"]: set() for shard in shards
        if not {shard.get("ParentShardId"), shard.get("AdjacentParentShardId")} & known
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stream", default="example")
    parser.add_argument("--records", type=int, default=1_000, help="how many to wait for (default: 1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="give up after this long (default: 60)")
    parser.add_argument("--limit", type=int, default=1_000, help="records in one GetRecords (default: 1000)")
    parser.add_argument("--endpoint", help="instead of AWS_ENDPOINT_URL")
    arguments = parser.parse_args()

    client = boto3.client("kinesis", endpoint_url=arguments.endpoint)
    stream, seen, deadline = arguments.stream, Seen(), time.monotonic() + arguments.seconds

    def iterator_of(shard: str) -> str:
        reply = client.get_shard_iterator(StreamName=stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
        return reply["ShardIterator"]

    waiting = roots(client, stream)                # by shard: the parents that are not finished
    finished: set[str] = set()
    open_iterators: dict[str, str] = {}
    while len(seen.rows) < arguments.records and time.monotonic() < deadline:
        for shard in [shard for shard, parents in waiting.items() if not parents]:
            del waiting[shard]
            open_iterators[shard] = iterator_of(shard)
        read = 0
        for shard, iterator in list(open_iterators.items()):
            try:
                reply = client.get_records(ShardIterator=iterator, Limit=arguments.limit)
            except client.exceptions.ExpiredIteratorException:
                # A program that keeps its place would ask AFTER_SEQUENCE_NUMBER; this one is never so slow.
                raise SystemExit("error: a shard iterator expired: five minutes went by between two reads") from None
            seen.add(shard, reply["Records"])
            read += len(reply["Records"])
            if following := reply.get("NextShardIterator"):
                open_iterators[shard] = following
                continue
            del open_iterators[shard]              # its end: what came after it is in its children
            finished.add(shard)
            for parents in waiting.values():
                parents.discard(shard)
            for child in reply.get("ChildShards", []):
                waiting.setdefault(child["ShardId"], set(child["ParentShards"]) - finished)
        if not read:
            time.sleep(PAUSE_SECONDS)      # an empty answer comes at once: whoever asks sets the pace
    return seen.report(arguments.records)


if __name__ == "__main__":
    sys.exit(main())
