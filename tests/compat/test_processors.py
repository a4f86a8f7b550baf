"""Record processors of amazon_kclpy's three generations inside a Worker, on a real node."""

from __future__ import annotations

from typing import Any

import pytest

from streamkit._core.aggregation import Aggregator
from streamkit.compat import kclpy_processor
from streamkit.compat.kclpy import kcl
from streamkit.compat.kclpy.v2 import processor as v2
from streamkit.compat.kclpy.v3 import processor as v3
from streamkit.compat.processors import generation_of
from streamkit.errors import InvalidUse
from tests.compat.conftest import described, put, worker
from tests.waiting import until


class Notes:
    """What a processor was told, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[int] = []
        self.records: list[Any] = []
        self.starts: list[tuple[str, int]] = []
        self.errors: list[str] = []

    def take(self, records: list[Any]) -> None:
        self.records += records
        self.seen += [int(record.binary_data) for record in records]


def first(notes: Notes) -> type:
    class First(kcl.RecordProcessorBase):
        def initialize(self, shard_id):
            notes.calls.append(f"initialize {shard_id}")

        def process_records(self, records, checkpointer):
            notes.take(records)
            checkpointer.checkpoint(records[-1].get("sequenceNumber"), records[-1]["subSequenceNumber"])

        def shutdown(self, checkpointer, reason):
            notes.calls.append(f"shutdown {reason}")
            if reason == "TERMINATE":
                checkpointer.checkpoint()

    return First


def second(notes: Notes) -> type:
    class Second(v2.RecordProcessorBase):
        def initialize(self, initialize_input):
            notes.calls.append(f"initialize {initialize_input.shard_id}")
            notes.starts.append((initialize_input.sequence_number, initialize_input.sub_sequence_number))

        def process_records(self, process_records_input):
            notes.take(process_records_input.records)
            process_records_input.checkpointer.checkpoint()

        def shutdown(self, shutdown_input):
            notes.calls.append(f"shutdown {shutdown_input.reason}")
            try:
                shutdown_input.checkpointer.checkpoint()
            except kcl.CheckpointError as error:
                notes.errors.append(error.value)

        def shutdown_requested(self, shutdown_requested_input):
            notes.calls.append("shutdown_requested")
            shutdown_requested_input.checkpointer.checkpoint()

    return Second


def third(notes: Notes, *, ends: bool = True) -> type:
    class Third(v3.RecordProcessorBase):
        def initialize(self, initialize_input):
            notes.calls.append(f"initialize {initialize_input.shard_id}")
            notes.starts.append((initialize_input.sequence_number, initialize_input.sub_sequence_number))

        def process_records(self, process_records_input):
            notes.take(process_records_input.records)
            assert process_records_input.millis_behind_latest >= 0

        def lease_lost(self, lease_lost_input):
            notes.calls.append("lease_lost")

        def shard_ended(self, shard_ended_input):
            notes.calls.append("shard_ended")
            if ends:
                shard_ended_input.checkpointer.checkpoint()

        def shutdown_requested(self, shutdown_requested_input):
            notes.calls.append("shutdown_requested")
            shutdown_requested_input.checkpointer.checkpoint()

    return Third


@pytest.mark.parametrize("generation", [first, second, third])
def test_every_generation_is_handed_all_records_and_children_follow_their_parent(session, generation):
    notes = Notes()
    put(session, 40)

    with worker(session, kclpy_processor(generation(notes))):
        until(lambda: len(notes.seen) == 40)
        session.client.split_shard("s", 0).wait()
        put(session, 40, first=40)
        until(lambda: len(notes.seen) >= 80)

    ending = {first: "shutdown TERMINATE", second: "shutdown TERMINATE", third: "shard_ended"}[generation]
    assert sorted(notes.seen) == list(range(80)) and sorted(notes.seen[:40]) == list(range(40))
    assert notes.calls[:2] == ["initialize shardId-000000000000", ending]
    assert notes.calls.count(ending) == 1, "a shard that ended is not said to be lost as well"
    assert described(session).leases[0].state == "complete"
    assert all(lease.lag_records == 0 for lease in described(session).leases)


def test_records_have_the_attributes_of_amazon_kclpy(session):
    notes = Notes()
    put(session, 3)

    with worker(session, kclpy_processor(second(notes))):
        until(lambda: len(notes.seen) == 3)

    record = notes.records[1]
    assert (record.partition_key, record.data, record.binary_data) == ("k1", "MQ==", b"1")
    assert record.sub_sequence_number == 0 and int(record.sequence_number) > int(notes.records[0].sequence_number)
    assert record.approximate_arrival_timestamp.timestamp() * 1000 == pytest.approx(record.timestamp_millis, abs=1)
    assert [record.get(name) for name in ("partitionKey", "sequenceNumber")] == ["k1", record.sequence_number]
    assert record["data"] == "MQ==" and record["approximateArrivalTimestamp"] == record.timestamp_millis


def test_a_stop_asks_for_a_checkpoint_and_the_next_worker_goes_on_there(session):
    notes = Notes()
    put(session, 10)
    with worker(session, kclpy_processor(third(notes))):
        until(lambda: len(notes.seen) == 10)
    put(session, 5, first=10)

    with worker(session, kclpy_processor(third(notes))):
        until(lambda: len(notes.seen) >= 15)

    assert notes.seen == list(range(15))
    assert notes.calls == ["initialize shardId-000000000000", "shutdown_requested", "lease_lost"] * 2
    assert notes.starts[0] == ("TRIM_HORIZON", 0)
    started = int(notes.starts[1][0])
    assert int(notes.records[8].sequence_number) < started <= int(notes.records[9].sequence_number)


def test_after_the_lease_a_checkpoint_is_refused_by_name(session):
    notes = Notes()
    put(session, 1)

    with worker(session, kclpy_processor(second(notes))):
        until(lambda: len(notes.seen) == 1)

    assert notes.calls[-1] == "shutdown ZOMBIE" and notes.errors == ["ShutdownException"]


def test_what_cannot_be_checkpointed_is_refused_with_the_kcls_words(session):
    refusals: list[str] = []
    kept: list[Any] = []

    class Curious(v3.RecordProcessorBase):
        def initialize(self, initialize_input):
            self.times = 0

        def process_records(self, process_records_input):
            checkpointer = process_records_input.checkpointer
            last = process_records_input.records[-1]
            other_shard = str(int(last.sequence_number) | 1 << 4)
            unborn = str(int(last.sequence_number) + (1 << 80))
            for position in [("nonsense", None), (other_shard, 0), (unborn, 0), (last.sequence_number, 7)]:
                self.expect(checkpointer, *position)
            checkpointer.checkpoint(last.sequence_number)
            self.expect(checkpointer, process_records_input.records[0].sequence_number, 0)
            checkpointer.checkpoint(last.sequence_number, 0)
            kept.append((checkpointer, last.sequence_number))

        def expect(self, checkpointer, *position):
            try:
                checkpointer.checkpoint(*position)
            except kcl.CheckpointError as error:
                refusals.append(error.value)

        def lease_lost(self, lease_lost_input):
            self.expect(*kept[-1])

    put(session, 10)
    with worker(session, kclpy_processor(Curious)):
        until(lambda: bool(kept))

    assert refusals == ["IllegalArgumentException"] * 5 + ["InvalidStateException"]


def failing(notes: Notes, failures: int) -> type:
    class Failing(third(notes)):  # type: ignore[misc]
        def process_records(self, process_records_input):
            if any(record.binary_data == b"7" for record in process_records_input.records):
                notes.errors.append("raised")
                if len(notes.errors) <= failures:
                    raise RuntimeError("seven")
            super().process_records(process_records_input)

    return Failing


def test_records_on_which_it_raises_come_again_and_none_is_passed_over(session):
    notes = Notes()
    put(session, 10)

    with worker(session, kclpy_processor(failing(notes, 6))):
        until(lambda: len(notes.seen) >= 10)

    assert notes.seen == list(range(10))


def test_strict_kcl_passes_over_what_raises(session):
    notes = Notes()
    put(session, 10)

    with worker(session, kclpy_processor(failing(notes, 1), strict_kcl=True), batch_records_max=1):
        until(lambda: len(notes.seen) >= 9)

    assert notes.seen == [0, 1, 2, 3, 4, 5, 6, 8, 9] and notes.errors == ["raised"]


def test_an_end_without_a_checkpoint_is_told_five_times_and_then_the_policy_decides(session, caplog, monkeypatch):
    """Acceptance: shard_ended without checkpoint is repeated 5 times with a clear error, then handled by the policy."""
    monkeypatch.setattr("streamkit.consumer.shard_consumer.Backoff", quick_backoff)
    notes = Notes()
    put(session, 10)

    with worker(session, kclpy_processor(third(notes, ends=False)), on_exhausted="skip"):
        until(lambda: len(notes.seen) == 10)
        session.client.split_shard("s", 0).wait()
        put(session, 10, first=10)
        until(lambda: len(notes.seen) >= 20)

    assert notes.calls.count("shard_ended") == 5
    assert "did not checkpoint in shard_ended, so its children cannot begin" in caplog.text
    assert sorted(notes.seen) == list(range(20))


def quick_backoff(random: Any, first_ms: float, most_ms: float) -> Any:
    from streamkit.runtime.backoff import Backoff

    return Backoff(random, first_ms / 100, most_ms / 100)


def test_user_records_of_an_aggregate_are_checkpointed_one_by_one(session):
    aggregator = Aggregator()
    for number in range(6):
        assert aggregator.add("k", b"%d" % number)
    with session.producer("s", codec="bytes") as producer:
        producer.put(aggregator.bytes(), key="a")
    notes = Notes()
    stopped = []

    class Careful(third(notes)):  # type: ignore[misc]
        def process_records(self, process_records_input):
            if stopped:
                return super().process_records(process_records_input)
            third_one = process_records_input.records[2]
            process_records_input.checkpointer.checkpoint(third_one.sequence_number, third_one.sub_sequence_number)
            stopped.append([record.sub_sequence_number for record in process_records_input.records])
            return None

        def shutdown_requested(self, shutdown_requested_input):
            pass

    with worker(session, kclpy_processor(Careful)):
        until(lambda: bool(stopped))
    with worker(session, kclpy_processor(Careful)):
        until(lambda: len(notes.seen) >= 3)

    assert stopped == [[0, 1, 2, 3, 4, 5]] and notes.seen == [3, 4, 5]
    assert notes.starts[1][1] == 2, "the last user record that is finished"


@pytest.mark.parametrize(("make", "generation"), [(first, 1), (second, 2), (third, 3)])
def test_generations_are_told_apart_also_without_their_base_class(make, generation):
    made = make(Notes())
    methods = {name: value for name, value in vars(made).items() if callable(value)}
    bare = type("Bare", (), methods)

    assert generation_of(made()) == generation and generation_of(bare()) == generation


def test_what_is_no_processor_is_refused():
    with pytest.raises(InvalidUse, match="no process_records"):
        generation_of(object())
