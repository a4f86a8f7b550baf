// Create a stream, put records, read them with GetRecords and again with SubscribeToShard.
//
//     npm install && AWS_ENDPOINT_URL=http://127.0.0.1:7441 node roundtrip.js [STREAM [RECORDS]]
//
// Nothing of the client is configured: it speaks HTTP/2 for every call, over http:// with prior knowledge and over
// https:// by ALPN. For a certificate of one's own set NODE_EXTRA_CA_CERTS to the file of its authority. The stream is
// deleted at the end; exits 1 when a record is missing.
"use strict";

const {
  KinesisClient,
  CreateStreamCommand,
  DeleteStreamCommand,
  DeregisterStreamConsumerCommand,
  DescribeStreamConsumerCommand,
  DescribeStreamSummaryCommand,
  GetRecordsCommand,
  GetShardIteratorCommand,
  ListShardsCommand,
  PutRecordsCommand,
  RegisterStreamConsumerCommand,
  SubscribeToShardCommand,
  waitUntilStreamExists,
} = require("@aws-sdk/client-kinesis");

const stream = process.argv[2] ?? "javascript-example";
const records = Number(process.argv[3] ?? 100);
const ENTRIES_MAX = 500; // a PutRecords takes no more
const ROUNDS_MAX = 100; // of every loop that waits for the server

const client = new KinesisClient({});
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const rowOf = (record) => JSON.parse(Buffer.from(record.Data).toString()).row;

async function put() {
  let entries = Array.from({ length: records }, (_, row) => ({
    PartitionKey: `key-${row % 10}`,
    Data: Buffer.from(JSON.stringify({ row })),
  }));
  for (let round = 0; entries.length > 0 && round < ROUNDS_MAX; round++) {
    const batch = entries.slice(0, ENTRIES_MAX);
    const reply = await client.send(new PutRecordsCommand({ StreamName: stream, Records: batch }));
    const refused = batch.filter((_, index) => reply.Records[index].ErrorCode);
    entries = entries.slice(ENTRIES_MAX).concat(refused);
    if (refused.length > 0) await pause(100);
  }
  return records - entries.length;
}

async function shards() {
  const found = [];
  let NextToken;
  do {
    const page = await client.send(new ListShardsCommand(NextToken ? { NextToken } : { StreamName: stream }));
    found.push(...page.Shards.map((shard) => shard.ShardId));
    NextToken = page.NextToken;
  } while (NextToken);
  return found;
}

async function get(shardIds) {
  const rows = new Set();
  for (const ShardId of shardIds) {
    const position = { StreamName: stream, ShardId, ShardIteratorType: "TRIM_HORIZON" };
    let { ShardIterator } = await client.send(new GetShardIteratorCommand(position));
    for (let round = 0; round < ROUNDS_MAX; round++) {
      const reply = await client.send(new GetRecordsCommand({ ShardIterator }));
      reply.Records.forEach((record) => rows.add(rowOf(record)));
      ShardIterator = reply.NextShardIterator;
      if (!ShardIterator || reply.MillisBehindLatest === 0) break;
    }
  }
  return rows.size;
}

async function subscribe(shardIds) {
  const { StreamDescriptionSummary: summary } = await client.send(
    new DescribeStreamSummaryCommand({ StreamName: stream }),
  );
  const name = { StreamARN: summary.StreamARN, ConsumerName: "javascript" };
  await client.send(new RegisterStreamConsumerCommand(name));
  let consumer;
  for (let round = 0; consumer?.ConsumerStatus !== "ACTIVE" && round < ROUNDS_MAX; round++) {
    if (round > 0) await pause(100);
    consumer = (await client.send(new DescribeStreamConsumerCommand(name))).ConsumerDescription;
  }

  const rows = new Set();
  let events = 0;
  const read = async (ShardId) => {
    const { EventStream } = await client.send(
      new SubscribeToShardCommand({
        ConsumerARN: consumer.ConsumerARN,
        ShardId,
        StartingPosition: { Type: "TRIM_HORIZON" },
      }),
    );
    for await (const { SubscribeToShardEvent: event } of EventStream) {
      events += 1;
      event.Records.forEach((record) => rows.add(rowOf(record)));
      // At the end of what is there; a program that goes on would use event.ContinuationSequenceNumber.
      if (rows.size >= records || event.MillisBehindLatest === 0) break;
    }
  };
  await Promise.all(shardIds.map(read));
  await client.send(new DeregisterStreamConsumerCommand({ ConsumerARN: consumer.ConsumerARN }));
  return { rows: rows.size, events };
}

async function main() {
  await client.send(new CreateStreamCommand({ StreamName: stream, ShardCount: 2 }));
  await waitUntilStreamExists({ client, maxWaitTime: 30, minDelay: 1 }, { StreamName: stream });
  try {
    console.log(`put               ${await put()} of ${records}`);
    const shardIds = await shards();
    const got = await get(shardIds);
    console.log(`GetRecords        ${got} of ${records} from ${shardIds.length} shards`);
    const pushed = await subscribe(shardIds);
    console.log(`SubscribeToShard  ${pushed.rows} of ${records} in ${pushed.events} events`);
    process.exitCode = got === records && pushed.rows === records ? 0 : 1;
  } finally {
    await client.send(new DeleteStreamCommand({ StreamName: stream, EnforceConsumerDeletion: true }));
    client.destroy();
  }
}

main().catch((error) => {
  console.error(`error: ${error.name}: ${error.message}`);
  process.exitCode = 1;
});
