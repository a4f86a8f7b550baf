"""Read a stream with enhanced fan-out: a registered consumer, one subscription for each shard.

    python boto3_fan_out.py --stream flights --records 1000

Records are pushed to the program as events. A subscription lasts at most five minutes; the next one goes on after the
last ContinuationSequenceNumber. The last event of a shard that was split or merged names its children. Output and exit
code are those of boto3_consumer.py.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from typing import Any

import boto3
from boto3_consumer import Seen, roots
from botocore.config import Config


class FanOut:
    """One thread for each shard that is being read."""

    def __init__(self, client: Any, consumer_arn: str, waiting: dict[str, set[str]], records: int, seconds: float):
        self.client, self.consumer_arn, self.records = client, consumer_arn, records
        self.deadline = time.monotonic() + seconds
        self.seen, self.lock = Seen(), threading.Condition()
        self.waiting, self.finished = waiting, set[str]()
        self.threads: list[threading.Thread] = []
        self.failed: list[BaseException] = []

    def enough(self) -> bool:
        return len(self.seen.rows) >= self.records or time.monotonic() >= self.deadline or bool(self.failed)

    def run(self) -> Seen:
        with self.lock:
            while not self.enough():
                for shard in [shard for shard, parents in self.waiting.items() if not parents]:
                    del self.waiting[shard]
                    # An idle subscription has an event every few seconds, so these end on their own when all is read.
                    thread = threading.Thread(target=self.read, args=(shard,), daemon=True)
                    self.threads.append(thread)
                    thread.start()
                self.lock.wait(1)
        if self.failed:
            raise self.failed[0]
        return self.seen

    def read(self, shard: str) -> None:
        try:
            position: dict[str, Any] = {"Type": "TRIM_HORIZON"}
            while (after := self.subscribe(shard, position)) and not self.enough():
                position = {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
        except BaseException as error:
            with self.lock:
                self.failed.append(error)
                self.lock.notify()

    def subscribe(self, shard: str, position: dict[str, Any]) -> str | None:
        """Reads one subscription; where the next one goes on, None at the end of the shard."""
        reply = self.client.subscribe_to_shard(
            ConsumerARN=self.consumer_arn, ShardId=shard, StartingPosition=position
        )
        after: str | None = None
        for message in reply["EventStream"]:
            event = message["SubscribeToShardEvent"]
            after = event.get("ContinuationSequenceNumber")
            with self.lock:
                self.seen.add(shard, event["Records"])
                if children := event.get("ChildShards"):
                    self.finished.add(shard)
                    for parents in self.waiting.values():
                        parents.discard(shard)
                    for child in children:
                        self.waiting.setdefault(child["ShardId"], set(child["ParentShards"]) - self.finished)
                self.lock.notify()
                if self.enough():
                    break
        return after


def active_consumer(client: Any, stream_arn: str, name: str) -> str:
    """Registers the consumer and waits until it is active; its ARN."""
    with contextlib.suppress(client.exceptions.ResourceInUseException):         # it is registered already
        client.register_stream_consumer(StreamARN=stream_arn, ConsumerName=name)
    for _ in range(30):
        reply = client.describe_stream_consumer(StreamARN=stream_arn, ConsumerName=name)
        if reply["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE":
            return reply["ConsumerDescription"]["ConsumerARN"]
        time.sleep(0.5)                    # boto3 has no waiter for consumers
    raise SystemExit(f"error: the consumer {name} does not become active")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stream", default="example")
    parser.add_argument("--consumer", default="fan-out")
    parser.add_argument("--records", type=int, default=1_000, help="how many to wait for (default: 1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="give up after this long (default: 60)")
    parser.add_argument("--endpoint", help="instead of AWS_ENDPOINT_URL")
    arguments = parser.parse_args()

    # A subscription holds its connection, so the pool must have one for each shard.
    client = boto3.client("kinesis", endpoint_url=arguments.endpoint, config=Config(max_pool_connections=100))
    summary = client.describe_stream_summary(StreamName=arguments.stream)["StreamDescriptionSummary"]
    consumer_arn = active_consumer(client, summary["StreamARN"], arguments.consumer)
    fan_out = FanOut(client, consumer_arn, roots(client, arguments.stream), arguments.records, arguments.seconds)
    try:
        seen = fan_out.run()
    finally:
        client.deregister_stream_consumer(ConsumerARN=consumer_arn)
    return seen.report(arguments.records)


if __name__ == "__main__":
    sys.exit(main())
