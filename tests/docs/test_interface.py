"""What people were promised that they may call: names, arguments and defaults, held against what there is.

The texts are the promise as it was given. What differs by a decision stands in DECIDED, what is not there in
MISSING; an entry that no longer differs must go.
"""

from __future__ import annotations

import ast
import inspect
import typing

import pytest

import streamkit
from streamkit import (
    AsyncClient,
    AsyncOperation,
    AsyncProducer,
    AsyncReader,
    Client,
    Context,
    Ordering,
    Producer,
    PutHandle,
    PutResult,
    Reader,
    RecordProcessor,
    RetryPolicy,
    ShardContext,
    errors,
)
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.producer.producer import _Base
from streamkit.testing import Node

PROMISED = '''
class Record:
    stream: str
    shard: str
    sequence_number: str
    key: str
    headers: Mapping[str, bytes]
    arrived: datetime
    time: datetime
    data: bytes
    value: T
    def json(self) -> Any: ...
    def view(self) -> memoryview: ...

class Producer:
    def __init__(
        self, stream: str | None = None, *,
        url: str | None = None, credentials: Credentials | None = None,
        codec: Codec | str = "json", compression: Literal["none", "lz4", "zstd"] = "lz4",
        acks: Literal["all", "leader"] = "all",
        linger_ms: int = 20, batch_bytes_max: int = 524_288,
        buffer_bytes_max: int = 67_108_864, on_full: Literal["wait", "raise"] = "wait",
        delivery_timeout_ms: int = 120_000, idempotent: bool = True,
    ) -> None: ...
    def put(self, value: object, *, key: str, stream: str | None = None,
            headers: Mapping[str, str | bytes] | None = None, time: datetime | None = None,
            explicit_hash_key: int | None = None) -> PutHandle: ...
    def put_many(self, entries: Iterable[PutEntry], *, stream: str | None = None) -> list[PutHandle]: ...
    def put_and_wait(self, value: object, *, key: str) -> PutResult: ...
    def flush(self, timeout_s: float | None = None) -> None: ...
    def transaction(self) -> ContextManager[Transaction]: ...
    def close(self, timeout_s: float = 30.0) -> None: ...

class Consumer:
    def __init__(
        self, stream: str | Sequence[str], *, application: str,
        start: Literal["trim_horizon", "latest"] | datetime | Mapping[str, str],
        codec: Codec | str = "auto",
        checkpoint: Literal["auto", "manual"] = "auto", checkpoint_interval_ms: int = 1_000,
        ordering: Ordering = Ordering.SHARD,
        retry: RetryPolicy = RetryPolicy(), dead_letter: str | None = None,
        on_exhausted: Literal["block", "dead_letter", "pause", "skip", "stop"] | None = None,
        batch_records_max: int = 10_000, prefetch_bytes_max: int = 67_108_864, fan_out: bool = False,
        processes: int = 1, leases_max: int | None = None, worker: str | None = None,
        stall_seconds: int = 300, drain_seconds: int = 30,
        url: str | None = None, credentials: Credentials | None = None,
    ) -> None: ...
    def handler(self, fn=None, *, where: str | None = None): ...
    def run(self) -> None: ...
    async def serve(self) -> None: ...
    def start(self) -> None: ...
    def stop(self, timeout_s: float = 30.0) -> None: ...
    def feed(self, values, *, key="test") -> FeedReport: ...
    def batches(self) -> Iterator[Batch]: ...
    def lag(self) -> Lag: ...
'''
DECIDED = {
    ("Producer", "__init__", "acks"): "0024: acknowledgement belongs to the stream",
    ("Consumer", "__init__", "retry"): "None stands for RetryPolicy()",
}
MISSING = {("Producer", "__init__", "credentials"), ("Consumer", "__init__", "credentials")}
CLASSES = {node.name: node for node in ast.parse(PROMISED).body if isinstance(node, ast.ClassDef)}


def signature(kind: str, method: str) -> inspect.Signature:
    owner = getattr(streamkit, kind)
    if (kind, method) == ("Producer", "__init__"):     # passes its settings on
        owner = _Base
    return inspect.signature(getattr(owner, method))


def arguments() -> list[tuple[str, str, str, ast.expr | None]]:
    """(class, method, argument, default) of all that is promised."""
    found: list[tuple[str, str, str, ast.expr | None]] = []
    for kind, node in CLASSES.items():
        for method in node.body:
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                plain, named = method.args.args, method.args.kwonlyargs
                defaults = [None] * (len(plain) - len(method.args.defaults)) + list(method.args.defaults)
                every = [*zip(plain, defaults, strict=True), *zip(named, method.args.kw_defaults, strict=True)]
                found += [(kind, method.name, arg.arg, default) for arg, default in every]
    return found


@pytest.mark.parametrize(("kind", "method", "argument", "default"), arguments(), ids=lambda part: str(part)[:24])
def test_every_argument_is_there_with_its_default(
    kind: str, method: str, argument: str, default: ast.expr | None
) -> None:
    parameters = signature(kind, method).parameters
    place = (kind, method, argument)
    if place in MISSING:
        assert argument not in parameters, f"{place} is there now: take it off the list"
        return
    if place in DECIDED:
        assert argument not in parameters or parameters[argument].default is None
        return

    assert argument in parameters
    if default is not None:
        said = compile(ast.Expression(default), "promise", "eval")
        assert parameters[argument].default == eval(said, {"Ordering": Ordering, "RetryPolicy": RetryPolicy})


@pytest.mark.parametrize("kind", CLASSES)
def test_every_method_and_attribute_is_there(kind: str) -> None:
    names = {
        ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else node.name for node in CLASSES[kind].body
        if isinstance(node, ast.AnnAssign | ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {name for name in names if not hasattr(getattr(streamkit, kind), name)} == set()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Context, "record batch stream shard application worker attempt fencing_token checkpoint retry_later reject"),
        (Context, "pause stopping log put"),
        (ShardContext, "position fencing_token previous_owner_crashed shard stream application worker"),
        (Checkpointer, "checkpoint deadline fencing_token"),
        (RecordProcessor, "initialize process shutdown_requested lease_lost"),  # shard_ended: once written
        (PutHandle, "result done exception add_done_callback __await__"),
        (PutResult, "stream shard sequence_number arrived duplicate"),
        (Reader, "__iter__ batches to_arrow"), (AsyncReader, "__aiter__ batches to_arrow"),
        (AsyncOperation, "wait __await__"), (streamkit.Operation, "id status progress wait"),
        (Client, "create_stream describe_stream split_shard merge_shards scale_stream reset_application delete_stream"),
        (Node, "create_stream producer consumer reader run_until_idle application fail heal"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)  # fmt: skip
def test_what_is_named_without_a_signature_is_there(kind: type, names: str) -> None:
    there = set(dir(kind)) | set(typing.get_type_hints(kind) if kind in (Context, ShardContext) else ())
    there |= set(getattr(kind, "__slots__", ()))

    assert set(names.split()) - there == set()


ERRORS = """
StreamkitError < InvalidRequest NotFound Conflict Denied Throttled Unavailable ProtocolMismatch TimedOut LeaseLost
StreamkitError < DataError PutFailed BatchFailure Closed InternalError
InvalidRequest < InvalidUse InvalidConfig InvalidPosition InvalidQuery RecordTooLarge
InvalidConfig < UnsafeListener
NotFound < StreamNotFound ShardNotFound ApplicationNotFound DeliveryNotFound QueryNotFound
Conflict < StreamExists StreamBusy LimitReached
Denied < NotAuthenticated NotAuthorized AddressBlocked
Throttled < BufferFull
Unavailable < ConnectionFailed NotLeader NotEnoughReplicas NodeDraining DiskFull
DataError < DecodeFailed CorruptBatch SequenceTrimmed IteratorExpired
"""
RETRYABLE = (
    "StreamBusy", "Throttled", "BufferFull", "Unavailable", "ConnectionFailed", "NotLeader", "NodeDraining", "DiskFull",
    "TimedOut",
)  # fmt: skip
# Rooms that are not there raise nothing: delivery, queries, logins. Iterators and their errors are the Kinesis face's
# own. Puts wait for a majority instead of failing while there is none.
NO_ERRORS = {
    "DeliveryNotFound", "QueryNotFound", "Denied", "NotAuthenticated", "NotAuthorized", "AddressBlocked",
    "IteratorExpired", "NotEnoughReplicas",
}  # fmt: skip


def test_the_tree_of_errors_has_the_promised_branches() -> None:
    missing = set()
    for line in ERRORS.split("\n"):
        parent, _, children = line.partition(" < ")
        for child in children.split():
            kind = getattr(errors, child, None)
            if kind is None:
                missing.add(child)
            else:
                assert issubclass(kind, getattr(errors, parent)), f"{child} is no {parent}"

    assert missing == NO_ERRORS
    assert all(getattr(errors, name).retryable for name in RETRYABLE)


@pytest.mark.parametrize(("sync", "other"), [(Client, AsyncClient), (Producer, AsyncProducer), (Reader, AsyncReader)])
def test_both_faces_have_the_same_methods(sync: type, other: type) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters) for name, method in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    ours, theirs = public(sync), public(other)
    # What only one of them needs: the machinery underneath, or a thread of its own.
    own = {
        "cancel_batch", "open_producer", "subscribe", "wait_writable", "find_leader", "facts_about", "remember",
        "describe_traffic", "start_flush", "runs", "at_exit",
    }  # fmt: skip
    asked_otherwise = {"put_batch", "fetch", "new_producer"}           # machinery, too

    assert (ours.keys() ^ theirs.keys()) - own == set()
    assert {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]} <= asked_otherwise
