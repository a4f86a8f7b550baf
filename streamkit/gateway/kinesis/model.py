"""The model of the Kinesis API: 57 operations, as text that `shapes` reads when it is asked.

A test compares it with the newest service model that botocore has.
"""

from __future__ import annotations

from streamkit.gateway.calls import Access
from streamkit.gateway.shapes import Blob, Boolean, Integer, Model, Scalar, String, Timestamp, choice, long, text

OPERATIONS: dict[str, tuple[str, str]] = {
    "AcknowledgeDeadLetterQueueRecords": (
        "QueueARN! Entries!:[AcknowledgeDeadLetterQueueRecordsRequestEntry]1..10",
        "Successful!:[AcknowledgeDeadLetterQueueRecordsResultEntry] "
        "Failed!:[AcknowledgeDeadLetterQueueRecordsErrorEntry]",
    ),
    "AcknowledgeQueueRecords": (
        "QueueARN! Entries!:[AcknowledgeQueueRecordsRequestEntry]1..10",
        "Successful!:[AcknowledgeQueueRecordsResultEntry] Failed!:[AcknowledgeQueueRecordsErrorEntry]",
    ),
    "AddTagsToStream": ("StreamName Tags!:{TagKey:TagValue}1..200 StreamARN StreamId", ""),
    "CreateChannel": (
        "ChannelName! ServiceExecutionRoleARN!:RoleARN "
        "StreamConfigurationList!:[ChannelStreamConfiguration]1..10000 S3DestinationConfiguration "
        "S3TablesDestinationConfiguration EncryptionConfiguration:ChannelEncryptionConfiguration "
        "Tags:{TagKey:TagValue}1..200 LoggingConfiguration:ChannelLoggingConfiguration",
        "ChannelDescription!",
    ),
    "CreateQueue": (
        "QueueName! StreamConfigurationList!:[QueueStreamConfiguration]1..10000 QueueAttributes "
        "Tags:{TagKey:TagValue}1..200",
        "QueueDescription!",
    ),
    "CreateStream": (
        "StreamName! ShardCount:PositiveIntegerObject StreamModeDetails Tags:{TagKey:TagValue}1..200 "
        "WarmThroughputMiBps:NaturalIntegerObject MaxRecordSizeInKiB RecordDistributionStrategy",
        "",
    ),
    "DecreaseStreamRetentionPeriod": ("StreamName RetentionPeriodHours! StreamARN StreamId", ""),
    "DeleteChannel": ("ChannelARN!", ""),
    "DeleteQueue": ("QueueARN!", ""),
    "DeleteResourcePolicy": ("ResourceARN! StreamId", ""),
    "DeleteStream": ("StreamName EnforceConsumerDeletion:BooleanObject StreamARN StreamId", ""),
    "DeregisterStreamConsumer": ("StreamARN ConsumerName ConsumerARN StreamId", ""),
    "DescribeAccountSettings": ("", "MinimumThroughputBillingCommitment:MinimumThroughputBillingCommitmentOutput"),
    "DescribeChannel": ("ChannelARN!", "ChannelDescription!"),
    "DescribeLimits": (
        "",
        "ShardLimit!:ShardCountObject OpenShardCount!:ShardCountObject "
        "OnDemandStreamCount!:OnDemandStreamCountObject "
        "OnDemandStreamCountLimit!:OnDemandStreamCountLimitObject ChannelCount:ChannelCountObject "
        "ChannelCountLimit:ChannelCountObject",
    ),
    "DescribeQueue": ("QueueARN!", "QueueDescription!"),
    "DescribeStream": (
        "StreamName Limit:DescribeStreamInputLimit ExclusiveStartShardId:ShardId StreamARN StreamId",
        "StreamDescription!",
    ),
    "DescribeStreamConsumer": ("StreamARN ConsumerName ConsumerARN StreamId", "ConsumerDescription!"),
    "DescribeStreamSummary": ("StreamName StreamARN StreamId", "StreamDescriptionSummary!"),
    "DisableEnhancedMonitoring": (
        "StreamName ShardLevelMetrics!:[MetricsName]1..7 StreamARN StreamId",
        "StreamName CurrentShardLevelMetrics:[MetricsName]1..7 DesiredShardLevelMetrics:[MetricsName]1..7 "
        "StreamARN",
    ),
    "EnableEnhancedMonitoring": (
        "StreamName ShardLevelMetrics!:[MetricsName]1..7 StreamARN StreamId",
        "StreamName CurrentShardLevelMetrics:[MetricsName]1..7 DesiredShardLevelMetrics:[MetricsName]1..7 "
        "StreamARN",
    ),
    "GetRecords": (
        "ShardIterator! Limit:GetRecordsInputLimit StreamARN StreamId DryRun:BooleanObject",
        "Records!:[Record] NextShardIterator:ShardIterator MillisBehindLatest ChildShards:[ChildShard]",
    ),
    "GetResourcePolicy": ("ResourceARN! StreamId", "Policy!"),
    "GetShardIterator": (
        "StreamName ShardId! ShardIteratorType! StartingSequenceNumber:SequenceNumber Timestamp StreamARN "
        "StreamId DryRun:BooleanObject",
        "ShardIterator",
    ),
    "IncreaseStreamRetentionPeriod": ("StreamName RetentionPeriodHours! StreamARN StreamId", ""),
    "ListChannels": (
        "StreamFilter:[StreamFilter]1..10000 MaxResults:ListChannelsInputLimit NextToken",
        "ChannelSummaries!:[ChannelSummary] NextToken",
    ),
    "ListQueues": (
        "MaxResults:ListQueuesInputLimit NextToken StreamFilter:[QueueStreamFilter]1..10000",
        "QueueSummaries!:[QueueSummary] NextToken",
    ),
    "ListShards": (
        "StreamName NextToken ExclusiveStartShardId:ShardId MaxResults:ListShardsInputLimit "
        "StreamCreationTimestamp:Timestamp ShardFilter StreamARN StreamId",
        "Shards:[Shard] NextToken",
    ),
    "ListStreamConsumers": (
        "StreamARN! NextToken MaxResults:ListStreamConsumersInputLimit StreamCreationTimestamp:Timestamp "
        "StreamId",
        "Consumers:[Consumer] NextToken",
    ),
    "ListStreams": (
        "Limit:ListStreamsInputLimit ExclusiveStartStreamName:StreamName NextToken",
        "StreamNames!:[StreamName] HasMoreStreams!:BooleanObject NextToken StreamSummaries:[StreamSummary]",
    ),
    "ListTagsForResource": ("ResourceARN! StreamId", "Tags:[Tag]0..200"),
    "ListTagsForStream": (
        "StreamName ExclusiveStartTagKey:TagKey Limit:ListTagsForStreamInputLimit StreamARN StreamId",
        "Tags!:[Tag]0..200 HasMoreTags!:BooleanObject",
    ),
    "MergeShards": ("StreamName ShardToMerge!:ShardId AdjacentShardToMerge!:ShardId StreamARN StreamId", ""),
    "PutRecord": (
        "StreamName Data! PartitionKey ExplicitHashKey:HashKey SequenceNumberForOrdering:SequenceNumber "
        "StreamARN StreamId DryRun:BooleanObject",
        "ShardId! SequenceNumber! EncryptionType",
    ),
    "PutRecords": (
        "Records!:[PutRecordsRequestEntry]1..500 StreamName StreamARN StreamId DryRun:BooleanObject",
        "FailedRecordCount:PositiveIntegerObject Records!:[PutRecordsResultEntry]1..500 EncryptionType",
    ),
    "PutResourcePolicy": ("ResourceARN! StreamId Policy!", ""),
    "ReceiveDeadLetterQueueRecords": (
        "QueueARN! Limit:ReceiveQueueRecordsInputLimit WaitTimeSeconds:ReceiveQueueRecordsWaitTimeSeconds "
        "VisibilityTimeoutSeconds",
        "QueueRecords!:[QueueRecord]",
    ),
    "ReceiveQueueRecords": (
        "QueueARN! Limit:ReceiveQueueRecordsInputLimit WaitTimeSeconds:ReceiveQueueRecordsWaitTimeSeconds "
        "VisibilityTimeoutSeconds",
        "QueueRecords!:[QueueRecord]",
    ),
    "RegisterStreamConsumer": ("StreamARN! ConsumerName! StreamId Tags:{TagKey:TagValue}1..200", "Consumer!"),
    "RemoveTagsFromStream": ("StreamName TagKeys!:[TagKey]1..50 StreamARN StreamId", ""),
    "RestoreDeadLetterQueueRecords": (
        "QueueARN! Entries!:[RestoreDeadLetterQueueRecordsRequestEntry]1..10",
        "Successful!:[RestoreDeadLetterQueueRecordsResultEntry] "
        "Failed!:[RestoreDeadLetterQueueRecordsErrorEntry]",
    ),
    "SplitShard": ("StreamName ShardToSplit!:ShardId NewStartingHashKey!:HashKey StreamARN StreamId", ""),
    "StartStreamEncryption": ("StreamName EncryptionType! KeyId! StreamARN StreamId", ""),
    "StopStreamEncryption": ("StreamName EncryptionType! KeyId! StreamARN StreamId", ""),
    "SubscribeToShard": (
        "ConsumerARN! StreamId ShardId! StartingPosition! DryRun:BooleanObject",
        "EventStream!:SubscribeToShardEventStream",
    ),
    "TagResource": ("Tags!:{TagKey:TagValue}1..200 ResourceARN! StreamId", ""),
    "UntagResource": ("TagKeys!:[TagKey]1..50 ResourceARN! StreamId", ""),
    "UpdateAccountSettings": (
        "MinimumThroughputBillingCommitment!:MinimumThroughputBillingCommitmentInput",
        "MinimumThroughputBillingCommitment:MinimumThroughputBillingCommitmentOutput",
    ),
    "UpdateChannel": (
        "ChannelARN! S3DestinationConfiguration:S3DestinationUpdateInput "
        "S3TablesDestinationConfiguration:S3TablesDestinationUpdateInput "
        "LoggingConfiguration:ChannelLoggingUpdateInput",
        "ChannelDescription!",
    ),
    "UpdateDeadLetterQueueRecordsVisibility": (
        "QueueARN! Entries!:[UpdateDeadLetterQueueRecordsVisibilityRequestEntry]1..10",
        "Successful!:[UpdateDeadLetterQueueRecordsVisibilityResultEntry] "
        "Failed!:[UpdateDeadLetterQueueRecordsVisibilityErrorEntry]",
    ),
    "UpdateMaxRecordSize": ("StreamARN StreamId MaxRecordSizeInKiB!", ""),
    "UpdateQueue": ("QueueARN! QueueAttributes!", "QueueDescription!"),
    "UpdateQueueRecordsVisibility": (
        "QueueARN! Entries!:[UpdateQueueRecordsVisibilityRequestEntry]1..10",
        "Successful!:[UpdateQueueRecordsVisibilityResultEntry] "
        "Failed!:[UpdateQueueRecordsVisibilityErrorEntry]",
    ),
    "UpdateShardCount": (
        "StreamName TargetShardCount!:PositiveIntegerObject ScalingType! StreamARN StreamId",
        "StreamName CurrentShardCount:PositiveIntegerObject TargetShardCount:PositiveIntegerObject StreamARN",
    ),
    "UpdateStreamMode": ("StreamARN! StreamId StreamModeDetails! WarmThroughputMiBps:NaturalIntegerObject", ""),
    "UpdateStreamRecordDistributionStrategy": ("StreamARN! StreamId RecordDistributionStrategy!", ""),
    "UpdateStreamWarmThroughput": (
        "StreamARN StreamName StreamId WarmThroughputMiBps!:NaturalIntegerObject",
        "StreamARN StreamName WarmThroughput:WarmThroughputObject",
    ),
}

STRUCTURES: dict[str, str] = {
    "AcknowledgeDeadLetterQueueRecordsErrorEntry": "ReceiptHandle! ErrorCode! ErrorMessage",
    "AcknowledgeDeadLetterQueueRecordsRequestEntry": "ReceiptHandle!",
    "AcknowledgeDeadLetterQueueRecordsResultEntry": "ReceiptHandle!",
    "AcknowledgeQueueRecordsErrorEntry": "ReceiptHandle! ErrorCode! ErrorMessage",
    "AcknowledgeQueueRecordsRequestEntry": "ReceiptHandle!",
    "AcknowledgeQueueRecordsResultEntry": "ReceiptHandle!",
    "ChannelDescription": (
        "ChannelName! ChannelARN! ChannelId! ChannelStatus! ChannelStatusReason "
        "ChannelCreationTimestamp!:Timestamp ServiceExecutionRoleARN!:RoleARN "
        "StreamConfigurationList!:[ChannelStreamDescription]1..10000 "
        "S3DestinationConfiguration:S3DestinationDescription "
        "S3TablesDestinationConfiguration:S3TablesDestinationDescription "
        "EncryptionConfiguration:ChannelEncryptionConfiguration "
        "LoggingConfiguration!:ChannelLoggingConfiguration"
    ),
    "ChannelEncryptionConfiguration": "EncryptionType!:ChannelEncryptionType KeyId!",
    "ChannelLoggingConfiguration": "CloudWatchLogs!",
    "ChannelLoggingUpdateInput": "CloudWatchLogs!:CloudWatchLogsUpdateInput",
    "ChannelStreamConfiguration": "StreamARN! RecordConfiguration!",
    "ChannelStreamDescription": "StreamARN! StreamCreationTimestamp!:Timestamp RecordConfiguration!",
    "ChannelStreamIdentifier": "StreamARN! StreamCreationTimestamp!:Timestamp",
    "ChannelSummary": (
        "ChannelName! ChannelARN! ChannelId! ChannelStatus! ChannelStatusReason "
        "ChannelCreationTimestamp!:Timestamp ChannelDestinationType! "
        "Streams!:[ChannelStreamIdentifier]1..10000"
    ),
    "ChildShard": "ShardId! ParentShards!:[ShardId] HashKeyRange!",
    "CloudWatchLogs": (
        "Enabled!:BooleanObject LogGroupName:CloudWatchLogGroupName LogStreamName:CloudWatchLogStreamName"
    ),
    "CloudWatchLogsUpdateInput": (
        "Enabled!:BooleanObject LogGroupName:CloudWatchLogGroupName LogStreamName:CloudWatchLogStreamName"
    ),
    "Consumer": "ConsumerName! ConsumerARN! ConsumerStatus! ConsumerCreationTimestamp!:Timestamp",
    "ConsumerDescription": (
        "ConsumerName! ConsumerARN! ConsumerStatus! ConsumerCreationTimestamp!:Timestamp StreamARN!"
    ),
    "DeadLetterConfiguration": "TargetType! MaxReceiveCount",
    "DeadLetterQueueS3Configuration": "BucketARN! ExpectedBucketOwner! ErrorOutputPrefix:S3ErrorOutputPrefix",
    "EnhancedMetrics": "ShardLevelMetrics:[MetricsName]1..7",
    "HashKeyRange": "StartingHashKey!:HashKey EndingHashKey!:HashKey",
    "MinimumThroughputBillingCommitmentInput": "Status!:MinimumThroughputBillingCommitmentInputStatus",
    "MinimumThroughputBillingCommitmentOutput": (
        "Status!:MinimumThroughputBillingCommitmentOutputStatus StartedAt:Timestamp EndedAt:Timestamp "
        "EarliestAllowedEndAt:Timestamp"
    ),
    "PartitionField": "Transform!:PartitionTransform SourceName!:PartitionSourceName",
    "PartitionSpec": "PartitionFields!:[PartitionField]1..10",
    "PutRecordsRequestEntry": "Data! ExplicitHashKey:HashKey PartitionKey",
    "PutRecordsResultEntry": "SequenceNumber ShardId ErrorCode ErrorMessage",
    "QueueAttributes": "VisibilityTimeoutSeconds DeadLetterConfiguration",
    "QueueDescription": (
        "QueueName! QueueARN! QueueStatus! QueueCreationTimestamp!:Timestamp "
        "StreamConfigurationList!:[QueueStreamConfiguration]1..10000 QueueAttributes"
    ),
    "QueueRecord": (
        "ReceiptHandle! RecordId! PartitionKey Data! ApproximateArrivalTimestamp! FirstReceiveTimestamp! "
        "ReceiveCount!"
    ),
    "QueueStartingPosition": "Type!:QueueStartingPositionType Timestamp",
    "QueueStreamConfiguration": "StreamARN! StartingPosition:QueueStartingPosition",
    "QueueStreamFilter": "StreamARN! StreamCreationTimestamp:Timestamp",
    "QueueStreamIdentifier": "StreamARN! StreamCreationTimestamp!:Timestamp",
    "QueueSummary": (
        "QueueName! QueueARN! QueueStatus! QueueCreationTimestamp!:Timestamp "
        "Streams!:[QueueStreamIdentifier]1..10000"
    ),
    "Record": "SequenceNumber! ApproximateArrivalTimestamp:Timestamp Data! PartitionKey EncryptionType",
    "RecordConfiguration": "RecordFormatType! GSRSchemaARN",
    "RestoreDeadLetterQueueRecordsErrorEntry": "ReceiptHandle! ErrorCode! ErrorMessage",
    "RestoreDeadLetterQueueRecordsRequestEntry": "ReceiptHandle!",
    "RestoreDeadLetterQueueRecordsResultEntry": "ReceiptHandle!",
    "S3DestinationConfiguration": (
        "DataFreshnessInSeconds DeadLetterQueueS3Configuration StorageConfiguration!:S3StorageConfiguration"
    ),
    "S3DestinationDescription": (
        "DataFreshnessInSeconds! DeadLetterQueueS3Configuration! StorageConfiguration!:S3StorageConfiguration"
    ),
    "S3DestinationUpdateInput": "DataFreshnessInSeconds!",
    "S3StorageConfiguration": (
        "BucketARN! ExpectedBucketOwner! OutputKeyTemplate:S3OutputKeyTemplate StorageClass:S3StorageClass "
        "CompressionType!:S3CompressionType"
    ),
    "S3TablesConfiguration": (
        "TableBucketARN! Namespace!:S3TablesNamespace TableName!:S3TablesTableName "
        "CompressionType!:S3TablesCompressionType PartitionSpec"
    ),
    "S3TablesDestinationConfiguration": (
        "DataFreshnessInSeconds DeadLetterQueueS3Configuration! "
        "S3TablesConfigurationList!:[S3TablesConfiguration]1..10000"
    ),
    "S3TablesDestinationDescription": (
        "DataFreshnessInSeconds! DeadLetterQueueS3Configuration! "
        "S3TablesConfigurationList!:[S3TablesConfiguration]1..10000"
    ),
    "S3TablesDestinationUpdateInput": "DataFreshnessInSeconds!",
    "SequenceNumberRange": "StartingSequenceNumber!:SequenceNumber EndingSequenceNumber:SequenceNumber",
    "Shard": "ShardId! ParentShardId:ShardId AdjacentParentShardId:ShardId HashKeyRange! SequenceNumberRange!",
    "ShardFilter": "Type!:ShardFilterType ShardId Timestamp",
    "StartingPosition": "Type!:ShardIteratorType SequenceNumber Timestamp",
    "StreamDescription": (
        "StreamName! StreamARN! StreamStatus! StreamModeDetails Shards!:[Shard] HasMoreShards!:BooleanObject "
        "RetentionPeriodHours! StreamCreationTimestamp!:Timestamp EnhancedMonitoring!:[EnhancedMetrics] "
        "EncryptionType KeyId"
    ),
    "StreamDescriptionSummary": (
        "StreamName! StreamARN! StreamId StreamStatus! StreamModeDetails RetentionPeriodHours! "
        "StreamCreationTimestamp!:Timestamp EnhancedMonitoring!:[EnhancedMetrics] EncryptionType KeyId "
        "OpenShardCount!:ShardCountObject ConsumerCount:ConsumerCountObject "
        "WarmThroughput:WarmThroughputObject MaxRecordSizeInKiB ChannelCount:ChannelCountObject "
        "RecordDistributionStrategy QueueCount:QueueCountObject"
    ),
    "StreamFilter": "StreamARN! StreamCreationTimestamp:Timestamp",
    "StreamModeDetails": "StreamMode!",
    "StreamSummary": "StreamName! StreamARN! StreamStatus! StreamModeDetails StreamCreationTimestamp:Timestamp",
    "SubscribeToShardEvent": (
        "Records!:[Record] ContinuationSequenceNumber!:SequenceNumber MillisBehindLatest! "
        "ChildShards:[ChildShard]"
    ),
    "SubscribeToShardEventStream": (
        "SubscribeToShardEvent! ResourceNotFoundException ResourceInUseException KMSDisabledException "
        "KMSInvalidStateException KMSAccessDeniedException KMSNotFoundException KMSOptInRequired "
        "KMSThrottlingException InternalFailureException"
    ),
    "Tag": "Key!:TagKey Value:TagValue",
    "UpdateDeadLetterQueueRecordsVisibilityErrorEntry": "ReceiptHandle! ErrorCode! ErrorMessage",
    "UpdateDeadLetterQueueRecordsVisibilityRequestEntry": "ReceiptHandle! VisibilityTimeoutSeconds!",
    "UpdateDeadLetterQueueRecordsVisibilityResultEntry": "ReceiptHandle!",
    "UpdateQueueRecordsVisibilityErrorEntry": "ReceiptHandle! ErrorCode! ErrorMessage",
    "UpdateQueueRecordsVisibilityRequestEntry": "ReceiptHandle! VisibilityTimeoutSeconds!",
    "UpdateQueueRecordsVisibilityResultEntry": "ReceiptHandle!",
    "WarmThroughputObject": "TargetMiBps:NaturalIntegerObject CurrentMiBps:NaturalIntegerObject",
    # What may stand in an event stream instead of an event.
    "ResourceNotFoundException": "message:ErrorMessage",
    "ResourceInUseException": "message:ErrorMessage",
    "KMSDisabledException": "message:ErrorMessage",
    "KMSInvalidStateException": "message:ErrorMessage",
    "KMSAccessDeniedException": "message:ErrorMessage",
    "KMSNotFoundException": "message:ErrorMessage",
    "KMSOptInRequired": "message:ErrorMessage",
    "KMSThrottlingException": "message:ErrorMessage",
    "InternalFailureException": "message:ErrorMessage",
}

SCALARS: dict[str, Scalar] = {
    "ApproximateArrivalTimestamp": Timestamp(),
    "BooleanObject": Boolean(),
    "BucketARN": text(1, 2048, r"arn:aws[-a-z0-9]*:s3:::[a-z0-9._-]{3,63}"),
    "ChannelARN": text(1, 2048, r"arn:aws.*:kinesis:.*:\d{12}:channel/\S+"),
    "ChannelCountObject": Integer(0, 1000000),
    "ChannelDestinationType": choice("S3 S3_TABLES"),
    "ChannelEncryptionType": choice("KMS"),
    "ChannelId": text(1, 64),
    "ChannelName": text(1, 128, r"[a-zA-Z0-9_.-]+"),
    "ChannelStatus": choice("CREATING ACTIVE UPDATING DELETING FAILED"),
    "ChannelStatusReason": text(1, 2048),
    "CloudWatchLogGroupName": text(1, 512, r"[\.\-_/#A-Za-z0-9]+"),
    "CloudWatchLogStreamName": text(1, 512, r"[^:*]*"),
    "ConsumerARN": text(
        1, 2048, r"^(arn):aws.*:kinesis:.*:\d{12}:.*stream\/[a-zA-Z0-9_.-]+\/consumer\/[a-zA-Z0-9_.-]+:[0-9]+"
    ),
    "ConsumerCountObject": Integer(0, 1000000),
    "ConsumerName": text(1, 128, r"[a-zA-Z0-9_.-]+"),
    "ConsumerStatus": choice("CREATING DELETING ACTIVE"),
    "Data": Blob(0, 10485760),
    "DataFreshnessInSeconds": Integer(),
    "DescribeStreamInputLimit": Integer(1, 10000),
    "EncryptionType": choice("NONE KMS"),
    "ErrorCode": String(),
    "ErrorMessage": String(),
    "ExpectedBucketOwner": text(12, 12, r"\d{12}"),
    "FirstReceiveTimestamp": Timestamp(),
    "GSRSchemaARN": text(
        1, 512, r"arn:aws[-a-z0-9]*:glue:[-a-z0-9]+:\d{12}:schema/[-a-zA-Z0-9_$#.]+/[-a-zA-Z0-9_$#.]+"
    ),
    "GetRecordsInputLimit": Integer(1, 10000),
    "HashKey": String(pattern=r"^(0|([1-9]\d{0,38}))$"),
    "KeyId": text(1, 2048),
    "ListChannelsInputLimit": Integer(1, 10000),
    "ListQueuesInputLimit": Integer(1, 10000),
    "ListShardsInputLimit": Integer(1, 10000),
    "ListStreamConsumersInputLimit": Integer(1, 10000),
    "ListStreamsInputLimit": Integer(1, 10000),
    "ListTagsForStreamInputLimit": Integer(1, 50),
    "MaxReceiveCount": Integer(1, 1000),
    "MaxRecordSizeInKiB": Integer(1024, 10240),
    "MetricsName": choice(
        "IncomingBytes IncomingRecords OutgoingBytes OutgoingRecords WriteProvisionedThroughputExceeded "
        "ReadProvisionedThroughputExceeded IteratorAgeMilliseconds ALL"
    ),
    "MillisBehindLatest": long(0),
    "MinimumThroughputBillingCommitmentInputStatus": choice("ENABLED DISABLED"),
    "MinimumThroughputBillingCommitmentOutputStatus": choice("ENABLED DISABLED ENABLED_UNTIL_EARLIEST_ALLOWED_END"),
    "NaturalIntegerObject": Integer(0),
    "NextToken": text(1, 1048576),
    "OnDemandStreamCountLimitObject": Integer(0, 1000000),
    "OnDemandStreamCountObject": Integer(0, 1000000),
    "PartitionKey": text(1, 256),
    "PartitionSourceName": text(1, 255, r"[a-zA-Z0-9\.\_]+"),
    "PartitionTransform": choice("TIME_HOUR"),
    "Policy": String(),
    "PositiveIntegerObject": Integer(1),
    "QueueARN": text(1, 2048, r"arn:aws.*:kinesis:.*:\d{12}:queue/\S+"),
    "QueueCountObject": Integer(0, 1000000),
    "QueueName": text(1, 128, r"[a-zA-Z0-9_.-]+"),
    "QueueStartingPositionType": choice("TRIM_HORIZON LATEST AT_TIMESTAMP"),
    "QueueStatus": choice("CREATING ACTIVE UPDATING DELETING"),
    "ReceiptHandle": text(1, 1024),
    "ReceiveCount": Integer(0),
    "ReceiveQueueRecordsInputLimit": Integer(1, 10),
    "ReceiveQueueRecordsWaitTimeSeconds": Integer(1, 20),
    "RecordDistributionStrategy": choice("AUTO USER_PARTITION_KEY"),
    "RecordFormatType": choice("GSR_JSON JSON STRING BYTE_ARRAY"),
    "RecordId": text(1, 64, r"^[a-z0-9]+$"),
    "ResourceARN": text(1, 2048, r"arn:aws.*:kinesis:.*:\d{12}:.*(stream|channel|queue)/\S+"),
    "RetentionPeriodHours": Integer(),
    "RoleARN": text(1, 512, r"arn:aws[-a-z0-9]*:iam::\d{12}:role/[a-zA-Z_0-9+=,.@\-_/]+"),
    "S3CompressionType": choice("NONE GZIP ZSTD"),
    "S3ErrorOutputPrefix": text(1, 512, r"[0-9A-Za-z!\-_'.*()\/]+"),
    "S3OutputKeyTemplate": text(1, 1024, r"[0-9A-Za-z!\-_'.*()\/=:{}]+"),
    "S3StorageClass": choice("STANDARD INTELLIGENT_TIERING GLACIER_IR"),
    "S3TablesCompressionType": choice("NONE ZSTD SNAPPY"),
    "S3TablesNamespace": text(1, 255, r"[0-9a-z_]+"),
    "S3TablesTableName": text(1, 255, r"[0-9a-z_]+"),
    "ScalingType": choice("UNIFORM_SCALING"),
    "SequenceNumber": String(pattern=r"^(0|([1-9]\d{0,128}))$"),
    "ShardCountObject": Integer(0, 1000000),
    "ShardFilterType": choice(
        "AFTER_SHARD_ID AT_TRIM_HORIZON FROM_TRIM_HORIZON AT_LATEST AT_TIMESTAMP FROM_TIMESTAMP"
    ),
    "ShardId": text(1, 128, r"[a-zA-Z0-9_.-]+"),
    "ShardIterator": text(1, 512),
    "ShardIteratorType": choice("AT_SEQUENCE_NUMBER AFTER_SEQUENCE_NUMBER TRIM_HORIZON LATEST AT_TIMESTAMP"),
    "StreamARN": text(1, 2048, r"arn:aws.*:kinesis:.*:\d{12}:stream/\S+"),
    "StreamId": text(1, 24, r"[a-z0-9]{20}-[a-z0-9]{3}"),
    "StreamMode": choice("PROVISIONED ON_DEMAND"),
    "StreamName": text(1, 128, r"[a-zA-Z0-9_.-]+"),
    "StreamStatus": choice("CREATING DELETING ACTIVE UPDATING"),
    "TableBucketARN": text(1, 2048, r"arn:aws[-a-z0-9]*:s3tables:[-a-z0-9]+:\d{12}:bucket/[a-z0-9_-]{3,63}"),
    "TagKey": text(1, 128),
    "TagValue": text(0, 256),
    "TargetType": choice("BUILT_IN NONE"),
    "Timestamp": Timestamp(),
    "VisibilityTimeoutSeconds": Integer(0, 43200),
}

MODEL = Model(OPERATIONS, STRUCTURES, SCALARS)

# What a key must be allowed, where the operation's name does not tell. A reader with fan-out registers itself.
ACCESS: dict[str, Access] = {
    "RegisterStreamConsumer": "read", "DeregisterStreamConsumer": "read", "PutResourcePolicy": "admin",
    **dict.fromkeys((name for name in OPERATIONS if name.startswith(("Receive", "Acknowledge", "Restore"))), "read"),
    "UpdateQueueRecordsVisibility": "read", "UpdateDeadLetterQueueRecordsVisibility": "read",
}  # fmt: skip
