"""Bounds that a user can run into, each with its unit in its name."""

HASH_KEYS = 1 << 128                       # hash keys are 0 … HASH_KEYS - 1
KEY_CHARACTERS_MAX = 256
KEY_BYTES_MAX = 1024
RECORD_BYTES_MAX_DEFAULT = 1024 * 1024
RECORD_BYTES_MAX = 10 * 1024 * 1024        # what a stream may be set to at most
BATCH_RECORDS_MAX = 65_535
BATCH_BYTES_MAX = RECORD_BYTES_MAX + 64 * 1024
FRAME_BYTES_MAX = BATCH_BYTES_MAX + 64 * 1024
STREAM_NAME_CHARACTERS_MAX = 128
CHANNEL_CHARACTERS_MAX = 256               # of a named producer
STREAM_SHARDS_MAX = 10_000
RETENTION_HOURS_DEFAULT = 168
RETENTION_HOURS_MIN = 24
RETENTION_HOURS_MAX = 8_760
OUTPUTS_BYTES_MAX = 1024 * 1024            # of one transaction, packed: it is one entry of the coordinator's log
PRODUCER_WINDOW = 8                        # batches a shard remembers of each producer, to recognise repeats
REPLICAS_MAX = 7                           # copies of a shard; more cost without helping: 7 survive the loss of 3
WEIGHT_MIN = 0.01                          # of a worker, beside the weights of others
WEIGHT_MAX = 100.0
