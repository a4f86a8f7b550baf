"""The Kinesis API as a service of the gateway: every operation, and what carries it out.

Called by the node. Read `Kinesis.open`.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamkit.client.client import AsyncClient
from streamkit.gateway.calls import Answer, Call, Operation, Service
from streamkit.gateway.kinesis.config import KinesisConfig
from streamkit.gateway.kinesis.consumers import Consumers
from streamkit.gateway.kinesis.directory import Directory
from streamkit.gateway.kinesis.gets import Gets
from streamkit.gateway.kinesis.model import MODEL
from streamkit.gateway.kinesis.puts import Puts
from streamkit.gateway.kinesis.shards import Shards
from streamkit.gateway.kinesis.streams import Streams
from streamkit.gateway.kinesis.subscriptions import Subscriptions
from streamkit.gateway.kinesis.tags import Tags
from streamkit.gateway.kinesis.throttles import Throttles
from streamkit.gateway.kinesis.tokens import Tokens
from streamkit.runtime.interfaces import Clock

# Operations of the model that mean nothing here: there is no queue and no channel to S3 behind this API. They are
# answered as by a region that does not know them yet.
UNKNOWN_HERE = frozenset({
    "AcknowledgeDeadLetterQueueRecords", "AcknowledgeQueueRecords", "CreateChannel", "CreateQueue", "DeleteChannel",
    "DeleteQueue", "DescribeChannel", "DescribeQueue", "ListChannels", "ListQueues", "ReceiveDeadLetterQueueRecords",
    "ReceiveQueueRecords", "RestoreDeadLetterQueueRecords", "UpdateChannel", "UpdateDeadLetterQueueRecordsVisibility",
    "UpdateQueue", "UpdateQueueRecordsVisibility",
})  # fmt: skip
_RAW = frozenset({"PutRecord", "PutRecords"})


class Kinesis:
    """Made with `await Kinesis.open(…)`; closed after the listener."""

    def __init__(self, client: AsyncClient, clock: Clock, config: KinesisConfig, tokens: Tokens) -> None:
        self._directory = directory = Directory(client, clock, config)
        self._throttles = throttles = Throttles(config.limits)
        self._clock = clock
        consumers = Consumers(directory, tokens)
        streams, shards, tags = Streams(directory, tokens), Shards(directory, tokens), Tags(directory, consumers)
        puts, gets = Puts(directory, throttles), Gets(directory, tokens, throttles)
        self.subscriptions = Subscriptions(directory, consumers, throttles)
        operations: Mapping[str, Operation] = {
            "PutRecord": puts.put_record,
            "PutRecords": puts.put_records,
            "GetShardIterator": gets.get_shard_iterator,
            "GetRecords": gets.get_records,
            "SubscribeToShard": self.subscriptions.subscribe,
            "RegisterStreamConsumer": consumers.register,
            "DescribeStreamConsumer": consumers.describe,
            "DeregisterStreamConsumer": consumers.deregister,
            "ListStreamConsumers": consumers.list,
            "CreateStream": streams.create,
            "DeleteStream": streams.delete,
            "DescribeStream": streams.describe,
            "DescribeStreamSummary": streams.describe_summary,
            "ListStreams": streams.list,
            "DescribeLimits": streams.describe_limits,
            "DescribeAccountSettings": streams.describe_account,
            "UpdateAccountSettings": streams.update_account,
            "IncreaseStreamRetentionPeriod": streams.increase_retention,
            "DecreaseStreamRetentionPeriod": streams.decrease_retention,
            "UpdateStreamMode": streams.set_mode,
            "StartStreamEncryption": streams.start_encryption,
            "StopStreamEncryption": streams.stop_encryption,
            "UpdateMaxRecordSize": streams.set_max_record_size,
            "UpdateStreamWarmThroughput": streams.set_warm_throughput,
            "UpdateStreamRecordDistributionStrategy": streams.set_distribution,
            "EnableEnhancedMonitoring": streams.enable_monitoring,
            "DisableEnhancedMonitoring": streams.disable_monitoring,
            "ListShards": shards.list,
            "SplitShard": shards.split,
            "MergeShards": shards.merge,
            "UpdateShardCount": shards.update_count,
            "AddTagsToStream": tags.add,
            "RemoveTagsFromStream": tags.remove,
            "ListTagsForStream": tags.list,
            "TagResource": tags.add_by_arn,
            "UntagResource": tags.remove_by_arn,
            "ListTagsForResource": tags.list_by_arn,
            "PutResourcePolicy": tags.put_policy,
            "GetResourcePolicy": tags.get_policy,
            "DeleteResourcePolicy": tags.delete_policy,
        }
        self.service = Service(
            target="Kinesis_20131202", signing_name="kinesis", model=MODEL,
            operations={name: self._bounded(name, work) for name, work in operations.items()},
            raw=_RAW, json_errors=frozenset({"SubscribeToShard"}),
        )

    @classmethod
    async def open(cls, client: AsyncClient, clock: Clock, config: KinesisConfig) -> Kinesis:
        """Raises StreamkitError when the node's metadata cannot be read."""
        return cls(client, clock, config, await Tokens.open(client, clock))

    async def close(self) -> None:
        await self._directory.close()

    def _bounded(self, name: str, work: Operation) -> Operation:
        """With AWS's rates of calls on streams and consumers, where they are switched on."""
        if name in _RAW or not self._throttles.counts(name):
            return work

        async def bounded(call: Call) -> Answer:
            self._throttles.control(name, call.caller.account, call.caller.region, self._clock.monotonic_ms())
            return await work(call)

        return bounded
