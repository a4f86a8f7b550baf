"""The error catalogue: for every code why it happens, the first thing to try, and one example as it is printed.

What the error means is its class's docstring in errors.py; this file adds what a person needs. A test requires
an entry a code and checks each example against the rules for messages: lower case, one line, a step that exists.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """why: one or two sentences; step: a command or a setting; example: the first line as printed, after "error: "."""

    why: str
    step: str
    example: str


ENTRIES: dict[str, Entry] = {
    "internal": Entry(
        "Something happened that streamkit holds to be impossible. Stored data was not changed.",
        "run the same command with --debug and report what it prints",
        "this is a defect in streamkit (incident 7f3a19c2): KeyError: 3",
    ),
    "invalid_request": Entry(
        "A value lies outside what the request allows. The message names the field, its range and what it got.",
        "correct the named value; streamkit COMMAND --help lists the ranges",
        "shards must be 1..10000, got 0",
    ),
    "invalid_use": Entry(
        "The program or command line calls streamkit in a way that cannot work.",
        "streamkit COMMAND --help, or the docstring of the named call",
        "a consumer needs start=: there is no safe default",
    ),
    "missing_library": Entry(
        "What was asked for needs a library that streamkit does not bring along. The message names it.",
        "pip install 'streamkit[EXTRA]', with the extra that the message names",
        "psycopg is not installed: No module named 'psycopg'",
    ),
    "invalid_config": Entry(
        "The configuration file, an environment variable or a flag has an unknown key or an impossible value. "
        "Nothing was started.",
        "streamkit config explain KEY",
        'streamkit.toml line 31: [streams] has no "retension_hours"; did you mean retention_hours?',
    ),
    "unsafe_listener": Entry(
        "A listener beyond this machine would be open to everyone who reaches it: there is no TLS and no login yet.",
        "listen on 127.0.0.1, or add --accept-insecure on a network you trust",
        "will not listen on 0.0.0.0:7440 without TLS and login: anyone who reaches it could read and delete your data",
    ),
    "invalid_position": Entry(
        "A start names no place in a shard: a time without a zone, or text that is neither time nor sequence.",
        "use trim_horizon, latest, a time such as 2h or 2026-11-23T10:00Z, or SHARD:SEQUENCE",
        "'yesterdy' is not a time",
    ),
    "invalid_query": Entry(
        "A condition says something that is not in the language, names what a record does not have, or compares what "
        "cannot be equal. The message names line and column and shows the place.",
        "correct the marked place; streamkit tail STREAM --where CONDITION tries one",
        'unknown name "totl" (line 1, column 1)',
    ),
    "invalid_table": Entry(
        "What was given as the KCL's lease table is something else, or holds a lease that makes no sense.",
        "aws dynamodb scan --table-name APPLICATION --output json",
        "this is not a KCL's lease table: there is no lease in it",
    ),
    "not_mapped": Entry(
        "Leases of the KCL name places that this node's stream does not have. Nothing was changed: an application that "
        "begins at a guess would lose records, or repeat them.",
        "streamkit app import NAME --kcl-table FILE --from POSITION, for shards that the table does not know",
        "1 of 2 shards cannot go on here: orders/shardId-000000000001: the table has no lease of it",
    ),
    "record_too_large": Entry(
        "Key, headers and value of one record exceed what the stream takes. The other records of the batch go through.",
        "store the body elsewhere and put a reference, or streamkit stream alter STREAM --record-bytes-max BYTES",
        "record is 1 572 864 bytes; this stream takes 1 048 576",
    ),
    "not_found": Entry(
        "What was named does not exist on this node, or it was deleted.",
        "streamkit stream list",
        "delivery orders-to-lake does not exist",
    ),
    "stream_not_found": Entry(
        "No stream has that name on the node you talk to. Streams are made by name, or on first put with serve --dev.",
        "streamkit stream list",
        'stream "ordrs" does not exist on n1; did you mean "orders"?',
    ),
    "shard_not_found": Entry(
        "The stream has no such shard; shard ids have the form shardId- and twelve digits.",
        "streamkit stream describe STREAM",
        'stream "orders" has no shard shardId-000000000009',
    ),
    "application_not_found": Entry(
        "No worker of that application has joined yet, or it was deleted.",
        "streamkit app list",
        'application "biling" does not exist; did you mean "billing"?',
    ),
    "node_not_found": Entry(
        "No node of that name belongs to the cluster: it never joined, or it was removed.",
        "streamkit cluster status",
        'no node "n9" belongs to the cluster; did you mean "n1"?',
    ),
    "conflict": Entry(
        "What is there now forbids it.",
        "look at the present state: streamkit stream list",
        "the present state forbids it",
    ),
    "stream_exists": Entry(
        "A stream of that name exists already; its records stay as they are.",
        "streamkit stream describe STREAM",
        'stream "orders" exists already, with 4 shards',
    ),
    "application_exists": Entry(
        "Positions are imported for new applications only; this one has positions of its own.",
        "streamkit app delete NAME, or choose another name",
        'application "billing" exists, and has positions of its own',
    ),
    "stream_busy": Entry(
        "The stream is being created or deleted at this moment.",
        "wait a second and repeat the command",
        'stream "orders" is being deleted',
    ),
    "limit_reached": Entry(
        "A configured number of streams, shards or connections is used up.",
        "streamkit config explain quotas.streams_max",
        "this node keeps 1 000 streams and has 1 000",
    ),
    "data_directory_locked": Entry(
        "One process at a time owns a data directory; another one has it open.",
        "stop that process, or give this one a directory of its own with --data",
        "./data is in use by process 4121",
    ),
    "cannot_place": Entry(
        "There are not enough running nodes for the copies that are asked for, or the node named takes none.",
        "streamkit cluster status; start nodes, or set cluster.replicas",
        "3 copies need 3 nodes, a majority of them running: there are 2 that take copies, 2 of them running",
    ),
    "node_in_use": Entry(
        "The node still holds copies of shards, or it is running.",
        "streamkit cluster drain NODE, stop it, then remove it",
        "n3 holds copies of 12 shards",
    ),
    "last_copy": Entry(
        "No other running node holds a copy of the shard that is known to be whole.",
        "start the other nodes of the shard, then look again: streamkit cluster status",
        "n3 holds the last certain copy of orders/0: its records would be lost",
    ),
    "node_refused": Entry(
        "The node may not run in the cluster as it is. Its data was not changed.",
        "start it with an empty data directory to add it; the other nodes fill it",
        "node n3 was removed from the cluster",
    ),
    "wrong_cluster": Entry(
        "The data directory belongs to another cluster or another node. Nothing was changed in it.",
        "check --cluster, --node-id and --data",
        "the data directory belongs to node n3, not to n4",
    ),
    "duplicate_node": Entry(
        "Another process is registered under this name, and it is alive.",
        "give each node a --node-id of its own",
        "another process runs as node n3 at 127.0.0.1:7440",
    ),
    "stale_directory": Entry(
        "The node has started from another directory since: this one is a copy or a restored backup, and what it has "
        "promised other nodes meanwhile is missing from it.",
        "start the node on its own directory, or on an empty one: the others fill it again",
        "node n3 has started 7 times, this data directory knows of 6: it is a copy or was restored from a backup",
    ),
    "store_unavailable": Entry(
        "The coordination store does not answer. Puts and reads go on; no leader can change, no stream can be made.",
        "see whether etcd runs and whether --cluster names it",
        "the coordination store at 127.0.0.1:2379 does not answer",
    ),
    "throttled": Entry(
        "More arrives than a limit allows. The library waits and repeats by itself; this error means that it may not.",
        "repeat after the time that the error names",
        "orders/shardId-000000000001 takes 1 048 576 bytes a second and got 1 310 720",
    ),
    "buffer_full": Entry(
        "The producer's own buffer is full, because the node takes records slower than the program puts them.",
        'raise buffer_bytes_max, or leave on_full="wait"',
        "the producer holds 67 108 864 bytes, the limit is 67 108 864",
    ),
    "unavailable": Entry(
        "The node cannot serve this at the moment; the same call may work later.",
        "repeat the command; streamkit doctor shows the node's state",
        "the node is starting",
    ),
    "connection_failed": Entry(
        "Nothing answers at that address, or the connection broke while a request was under way.",
        "streamkit serve --dev",
        "nothing answers at 127.0.0.1:7440",
    ),
    "not_leader": Entry(
        "Another node leads this shard now. Clients ask again by themselves.",
        "repeat the command; streamkit stream describe STREAM names the leaders",
        "shardId-000000000001 is led by n2",
    ),
    "node_draining": Entry(
        "The node is stopping in order and takes nothing new.",
        "wait for its restart, or talk to another node with --url",
        "n1 is stopping",
    ),
    "disk_full": Entry(
        "Free space is below storage.free_bytes_min. Puts are refused, reads and deletes go on; it recovers by itself.",
        "add space, shorten retention, or delete a stream",
        "puts are refused: 0.9 GiB free in /var/lib/streamkit, the floor is 1.0 GiB; reads go on",
    ),
    "disk_failed": Entry(
        "A write or a sync failed. The page cache is not to be trusted after that, so the node stops appending.",
        "look at the kernel's log, then restart the node: it recovers from what is on disk",
        "writing journal-00000004 failed: input/output error",
    ),
    "protocol_mismatch": Entry(
        "The other side speaks something else: the wrong port, or a version too far apart.",
        "use the native port, 7440 unless configured otherwise",
        "127.0.0.1:7441 speaks HTTP; the native port is 7440",
    ),
    "timed_out": Entry(
        "No answer came in time. With sent=true the request may have been carried out.",
        "raise --timeout, or see what the node does: streamkit doctor",
        "no answer from streamkit://127.0.0.1:7440 within 5 s",
    ),
    "lease_lost": Entry(
        "The shard belongs to another worker now, because this one was silent for longer than its membership time.",
        "nothing to do; if it happens often, look for long pauses in the handler",
        "shardId-000000000003 belongs to worker w-91c0 now; this worker must stop",
    ),
    "instance_taken": Entry(
        "Another worker was started under this worker's instance name, and has its leases now. The elder one ends.",
        "give each worker that runs at the same time an instance name of its own",
        'worker billing-0-5f1c2a90 runs under the instance name "billing-0" now; this one must end',
    ),
    "producer_error": Entry(
        "The rules that keep records from being stored twice refused a batch.",
        "make a new Producer",
        "the batch was refused",
    ),
    "producer_fenced": Entry(
        "Another producer of the same name started later; the older one may not write any more.",
        "run one producer a name, or leave the name out",
        "producer 17 of epoch 3 was replaced by epoch 4",
    ),
    "key_halted": Entry(
        "An earlier record of the same key failed, and the producer was told not to store later ones without it.",
        "settle what failed first, then call resume_key and put the record again",
        "an earlier record of the same key failed: 1 records for shardId-000000000000 were not acknowledged in time",
    ),
    "name_in_use": Entry(
        "A forked process used a producer's name that its parent has open; it would have shut the parent out.",
        "give the child a name of its own, or close the parent's producer before the fork",
        'the name "importer" belongs to the process that this one was forked from',
    ),
    "unknown_producer": Entry(
        "The shard has forgotten this producer, so it cannot tell whether the batch is a repeat.",
        "make a new Producer, and check what was stored with streamkit tail STREAM",
        "shardId-000000000000 does not know producer 17",
    ),
    "cancelled": Entry(
        "The record, or the batch it was in, was cancelled. It is not stored and never will be.",
        "nothing to do; put the record again if it is still wanted",
        "the batch was cancelled",
    ),
    "outcome_unknown": Entry(
        "The broker could not be reached to ask whether the record is stored.",
        'producer.resolve(error.facts["token"]), from any process, once it can be reached',
        "whether 3 records for shardId-000000000000 are stored is not known",
    ),
    "sequence_gap": Entry(
        "An earlier batch of this producer has not arrived. The library sends it first by itself.",
        "nothing to do; if a program sees this, make a new Producer",
        "producer 17 sent record 1 200, 1 100 comes next",
    ),
    "sequence_corrupt": Entry(
        "A repeated batch is not the one that was stored: its bounds differ.",
        "make a new Producer and report the program that caused it",
        "producer 17 repeats records 1 100 to 1 200 with other bounds",
    ),
    "shard_closed": Entry(
        "A split, a merge or a change of the number of shards closed the shard. Its records stay readable; its keys "
        "are taken by its children. Producers go over to them by themselves.",
        "nothing to do; streamkit stream describe STREAM shows the map",
        "shardId-000000000003 of orders was closed; its children take its keys",
    ),
    "wrong_shard": Entry(
        "The batch was routed by an older map of the shards. The library routes it again by itself.",
        "nothing to do; streamkit stream describe STREAM shows the map",
        "the batch holds keys of another shard than shardId-000000000001",
    ),
    "forked_handle": Entry(
        "The handle was made before the process forked; its record is the parent's to send.",
        "wait for handles in the process that made them",
        "this handle belongs to process 4121",
    ),
    "data_error": Entry(
        "Stored bytes cannot be given out as they were asked for.",
        "streamkit segment inspect FILE",
        "the batch cannot be read",
    ),
    "decode_failed": Entry(
        "The payload is not what the codec or the handler's annotation expects.",
        "streamkit tail STREAM --from SHARD:SEQUENCE -n 1",
        'orders/shardId-000000000003 is not what "bill" expects: id: expected int, got str',
    ),
    "corrupt_batch": Entry(
        "A batch's checksum or shape is wrong. It is never guessed at, but refused on arrival or fenced off on disk.",
        "streamkit segment inspect FILE",
        "body checksum differs",
    ),
    "corrupt_file": Entry(
        "A file is damaged where it was already on disk, which no crash explains.",
        "keep a copy of the directory, then streamkit segment inspect FILE",
        "journal-00000004 is damaged at byte 8 192: checksum differs",
    ),
    "sequence_trimmed": Entry(
        "Retention removed that position before it was read.",
        "start at the oldest record: --from trim_horizon",
        "position 31 877 of orders/shardId-000000000000 was removed by retention; the oldest kept is 50 002",
    ),
    "put_failed": Entry(
        "Some records were not stored, and no one looked at their handles. The error lists each cause once.",
        "look at error.failures; put the records again",
        "3 records were not stored: record is 1 572 864 bytes; this stream takes 1 048 576",
    ),
    "batch_failure": Entry(
        "A handler failed some records of a batch on purpose.",
        "see the handler's retry policy",
        "2 records failed",
    ),
    "transaction_aborted": Entry(
        "Nothing of a transaction is stored, nor will be: a newer owner or instance came, or its time was over.",
        "begin another one; a newer instance of the name may be at work",
        "the transaction was not decided within 60 s",
    ),
    "transaction_too_large": Entry(
        "A transaction is one entry of the coordinator's log, and what it puts is more than fits there.",
        "put less in one transaction",
        "the transaction puts 1 300 000 bytes, packed; at most 1 048 576 are decided at once",
    ),
    "sink_misused": Entry(
        "A delivery's store refuses what it is given: there is no such bucket or table, or no right to write there. "
        "The delivery tries again, more and more seldom, and goes on by itself once that is put right.",
        "look at the store's settings and rights; streamkit lag DELIVERY shows what waits",
        "s3://lake refuses orders/2026/lake-1-2026-11-24-03-10-00-5d1b.gz: no such bucket",
    ),
    "undeliverable": Entry(
        "A delivery has records that its transformation, its format or its store cannot take, and nowhere to put them. "
        "It holds the shard there; nothing is lost.",
        'Delivery(…, dead_letter="orders-undelivered")',
        "2 records cannot be delivered; the first, 4966…0002 of shardId-000000000000: it has no data.country",
    ),
    "closed": Entry(
        "The object was closed, or the node behind it stopped.",
        "open a new one",
        "the producer is closed",
    ),
    "system": Entry(
        "The operating system refused: a path, a permission, an address in use.",
        "look at the path and its permissions",
        "/var/lib/streamkit: permission denied",
    ),
}


def first_step(code: str) -> str:
    """What to try for an error that brought no advice of its own."""
    return ENTRIES[code].step if code in ENTRIES else "streamkit doctor"
