#!/bin/sh
# The unmodified AWS CLI against streamkit: every call that a mainstream client cannot do without, one after the other.
#
#     AWS_ENDPOINT_URL=http://127.0.0.1:7441 sh aws_cli.sh [STREAM]
#
# Prints one line for each operation and deletes the stream at the end. AWS names the program, when it is not `aws`.
# SubscribeToShard is missing because the CLI does not have it: boto3_fan_out.py shows it.
set -eu
stream=${1:-cli-example}
: "${AWS:=aws}" "${AWS_ACCESS_KEY_ID:=any}" "${AWS_SECRET_ACCESS_KEY:=any}" "${AWS_DEFAULT_REGION:=us-east-1}"
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION AWS_PAGER=
export AWS_DEFAULT_OUTPUT=text AWS_CLI_AUTO_PROMPT=off

kinesis() { "$AWS" kinesis "$@"; }
say() { printf '%-30s %s\n' "$1" "$2"; }
# Version 1 takes blobs as they are, version 2 in base64.
case $("$AWS" --version 2>&1) in
    aws-cli/1.*) blob() { printf %s "$1"; } ;;
    *) blob() { printf %s "$1" | base64; } ;;
esac
check() { [ "$2" = "$3" ] || { echo "error: $1: expected '$2', got '$3'" >&2; exit 1; }; }

# The waiter of the CLI asks every ten seconds; a change here takes well under one.
wait_active() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        status=$(kinesis describe-stream-summary --stream-name "$stream" \
            --query StreamDescriptionSummary.StreamStatus)
        [ "$status" = ACTIVE ] && return
        sleep 1
    done
    echo "error: the stream stays $status" >&2
    exit 1
}
open_shards() {
    kinesis list-shards --stream-name "$stream" --shard-filter Type=AT_LATEST --query 'Shards[].ShardId'
}

# Streams
kinesis create-stream --stream-name "$stream" --shard-count 2
kinesis wait stream-exists --stream-name "$stream"
say CreateStream "$stream"
arn=$(kinesis describe-stream-summary --stream-name "$stream" --query StreamDescriptionSummary.StreamARN)
say DescribeStreamSummary "$arn"
say DescribeStream "$(kinesis describe-stream --stream-name "$stream" \
    --query 'StreamDescription.[StreamStatus,length(Shards),RetentionPeriodHours]')"
kinesis list-streams --query 'StreamNames[]' | tr '\t' '\n' | grep -qx "$stream"
say ListStreams "names $stream"

# Records
shard=$(kinesis put-record --stream-name "$stream" --partition-key a --data "$(blob one)" --query ShardId)
say PutRecord "into $shard"
failed=$(kinesis put-records --stream-name "$stream" --query FailedRecordCount --records \
    "PartitionKey=a,Data=$(blob two)" "PartitionKey=a,Data=$(blob three)")
check PutRecords 0 "$failed"
say PutRecords "2 records, $failed failed"
iterator=$(kinesis get-shard-iterator --stream-name "$stream" --shard-id "$shard" \
    --shard-iterator-type TRIM_HORIZON --query ShardIterator)
say GetShardIterator "${#iterator} characters"
data=$(kinesis get-records --shard-iterator "$iterator" --query 'Records[].Data' | tr '\t' '\n' |
    while read -r line; do printf '%s ' "$(printf %s "$line" | base64 -d)"; done)
check GetRecords "one two three " "$data"
say GetRecords "$data"

# Shards
say ListShards "$(open_shards)"
kinesis split-shard --stream-name "$stream" --shard-to-split shardId-000000000000 \
    --new-starting-hash-key 85070591730234615865843651857942052864
wait_active
check SplitShard "shardId-000000000001 shardId-000000000002 shardId-000000000003" "$(open_shards | tr '\t' ' ')"
say SplitShard "$(open_shards)"
kinesis merge-shards --stream-name "$stream" --shard-to-merge shardId-000000000002 \
    --adjacent-shard-to-merge shardId-000000000003
wait_active
check MergeShards "shardId-000000000001 shardId-000000000004" "$(open_shards | tr '\t' ' ')"
say MergeShards "$(open_shards)"
say UpdateShardCount "$(kinesis update-shard-count --stream-name "$stream" --target-shard-count 4 \
    --scaling-type UNIFORM_SCALING --query '[CurrentShardCount,TargetShardCount]')"
wait_active
check UpdateShardCount 4 "$(open_shards | wc -w)"

# Consumers
consumer=$(kinesis register-stream-consumer --stream-arn "$arn" --consumer-name reader --query Consumer.ConsumerARN)
say RegisterStreamConsumer "$consumer"
say DescribeStreamConsumer "$(kinesis describe-stream-consumer --consumer-arn "$consumer" \
    --query ConsumerDescription.ConsumerName)"
say ListStreamConsumers "$(kinesis list-stream-consumers --stream-arn "$arn" --query 'Consumers[].ConsumerName')"
kinesis deregister-stream-consumer --consumer-arn "$consumer"
say DeregisterStreamConsumer reader

# What administrators call now and then
kinesis increase-stream-retention-period --stream-name "$stream" --retention-period-hours 48
kinesis decrease-stream-retention-period --stream-name "$stream" --retention-period-hours 24
say IncreaseStreamRetentionPeriod "48 hours and back"
kinesis add-tags-to-stream --stream-name "$stream" --tags colour=green
say ListTagsForStream "$(kinesis list-tags-for-stream --stream-name "$stream" --query 'Tags[].[Key,Value]')"
kinesis remove-tags-from-stream --stream-name "$stream" --tag-keys colour
say DescribeLimits "$(kinesis describe-limits --query '[ShardLimit,OpenShardCount]')"

kinesis delete-stream --stream-name "$stream"
kinesis wait stream-not-exists --stream-name "$stream"
say DeleteStream "$stream"
echo "all calls answered"
