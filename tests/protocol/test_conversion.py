"""What goes over the wire comes back as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit import errors
from streamkit.model.limits import HASH_KEYS
from streamkit.model.position import LATEST, TRIM_HORIZON, AfterSequence, AtSequence, AtTime, Position
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import UNCHANGED, Durability, StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol import messages as m
from streamkit.protocol.conversion import (
    alter_to_wire,
    altered,
    create_from_wire,
    create_to_wire,
    failure_from_wire,
    failure_to_wire,
    position_to_wire,
    stream_from_wire,
    stream_to_wire,
)
from streamkit.protocol.frames import MESSAGE_BYTES_MAX

keys = st.integers(0, HASH_KEYS)
shards = st.builds(
    Shard,
    ordinal=st.integers(0, 2**31),
    uuid=st.binary(min_size=16, max_size=16),
    hash_start=keys,
    hash_end=keys,
    created_ms=st.integers(0, 2**45),
    closed_ms=st.none() | st.integers(0, 2**45),
    parents=st.lists(st.integers(0, 99), max_size=2).map(tuple),
    children=st.lists(st.integers(0, 99), max_size=2).map(tuple),
    epoch=st.integers(0, 2**32 - 1),
    leader=st.text(max_size=20),
    address=st.text(max_size=20),
)
configs = st.builds(
    StreamConfig,
    shards=st.integers(1, 10_000),
    retention_hours=st.integers(24, 8_760),
    retention_bytes=st.none() | st.integers(1, 1 << 62),
    durability=st.sampled_from(Durability),
    record_bytes_max=st.integers(1, 10 << 20),
    codec=st.text(max_size=20),
)


@given(config=configs, found=st.lists(shards, max_size=4).map(tuple), status=st.sampled_from(StreamStatus))
def test_a_stream_comes_back_as_it_was(config: StreamConfig, found: tuple[Shard, ...], status: StreamStatus) -> None:
    stream = StreamDescription(name="s", status=status, config=config, created_ms=1, map_version=2, shards=found)
    message = m.decode(m.encode(m.StreamDescribed(stream_to_wire(stream))))
    assert isinstance(message, m.StreamDescribed)
    assert stream_from_wire(message.stream) == stream
    assert stream_from_wire(stream_to_wire(stream, with_shards=False)).shards == ()


@given(config=configs)
def test_a_configuration_comes_back_as_it_was(config: StreamConfig) -> None:
    assert create_from_wire(create_to_wire("s", config)) == config


@given(config=configs, wanted=configs, named=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_what_an_alteration_names_changes_and_nothing_else(
    config: StreamConfig, wanted: StreamConfig, named: tuple[bool, bool, bool]
) -> None:
    hours, size, record = named
    message = m.decode(m.encode(alter_to_wire(
        "s", wanted.retention_hours if hours else None, wanted.retention_bytes if size else UNCHANGED,
        wanted.record_bytes_max if record else None,
    )))  # fmt: skip
    assert isinstance(message, m.AlterStream)
    assert altered(config, message) == replace(
        config,
        retention_hours=(wanted if hours else config).retention_hours,
        retention_bytes=(wanted if size else config).retention_bytes,
        record_bytes_max=(wanted if record else config).record_bytes_max,
    )


@pytest.mark.parametrize("settings", [(1, None, None), (None, 0, None), (None, -1, None), (None, UNCHANGED, 0)])
def test_an_impossible_alteration_is_not_sent(settings: Any) -> None:
    with pytest.raises(errors.InvalidRequest):
        alter_to_wire("s", *settings)


def test_a_note_comes_back_byte_for_byte() -> None:
    everything = bytes(range(256))
    for message in (
        m.SwapNotes((m.NoteSwap("é", 2**63 - 1, everything), m.NoteSwap("b", 0, None), m.NoteSwap("c", 0, b""))),
        m.NotesListed((m.NoteInfo("é", everything, 7),), True), m.NoteRead(None, 0), m.NotesSwapped(None),
    ):
        assert m.decode(m.encode(message)) == message


def test_a_stream_of_ten_thousand_shards_fits_a_message() -> None:
    found = tuple(
        Shard(ordinal=i, uuid=bytes([255] * 16), hash_start=low, hash_end=high, created_ms=2**42, closed_ms=2**42,
              parents=(i, i), children=(i, i), epoch=2**32 - 1, leader="n" * 40, address="a" * 40)
        for i, (low, high) in enumerate(even_ranges(10_000))
    )  # fmt: skip
    stream = StreamDescription(
        name="s", status=StreamStatus.ACTIVE, config=StreamConfig(shards=10_000), created_ms=1, map_version=1,
        shards=found,
    )
    assert len(m.encode(m.StreamDescribed(stream_to_wire(stream)))) < MESSAGE_BYTES_MAX


def test_a_status_from_a_newer_broker_is_a_mismatch() -> None:
    stream = StreamDescription(
        name="s", status=StreamStatus.ACTIVE, config=StreamConfig(), created_ms=1, map_version=1, shards=()
    )
    newer = msgspec.structs.replace(stream_to_wire(stream), status="hibernating")
    with pytest.raises(errors.ProtocolMismatch, match="hibernating"):
        stream_from_wire(newer)


@pytest.mark.parametrize(
    "position, wire",
    [
        (TRIM_HORIZON, ("trim_horizon", 0)),
        (LATEST, ("latest", 0)),
        (AtSequence(5), ("at_sequence", 5)),
        (AfterSequence(5), ("after_sequence", 5)),
        (AtTime(5), ("at_time", 5)),
    ],
)
def test_positions_have_one_spelling(position: Position, wire: tuple[str, int]) -> None:
    assert position_to_wire(position) == wire


@pytest.mark.parametrize("kind", errors.BY_CODE.values())
def test_every_error_comes_back_with_its_type_text_remedy_and_facts(kind: type[errors.StreamkitError]) -> None:
    error = kind("what and why", try_="do this", shard="shardId-0", count=3, ratio=0.5, left=None, names=["a", "b"])
    message = m.decode(m.encode(failure_to_wire(error)))
    assert isinstance(message, m.Failure)
    back = failure_from_wire(message)
    assert type(back) is kind
    assert (str(back), back.try_, back.facts) == (str(error), error.try_, error.facts)


def test_facts_that_are_no_plain_values_travel_as_text() -> None:
    error = errors.NotFound("x", position=AtSequence(1), huge=1 << 100, path=b"raw", pair=(1, object))
    failure = m.decode(m.encode(failure_to_wire(error)))
    assert isinstance(failure, m.Failure)
    assert failure.facts["position"] == "AtSequence(sequence=1)"
    assert failure.facts["huge"] == str(1 << 100)
    assert failure.facts["pair"][0] == 1


def test_a_code_from_a_newer_broker_is_a_plain_error() -> None:
    error = failure_from_wire(m.Failure("invented_later", "text", "", {"self": 1, "message": 2, "try_": 3, "n": 4}))
    assert type(error) is errors.StreamkitError
    assert error.facts == {"n": 4}


def test_the_text_of_a_foreign_exception_stays_at_home() -> None:
    failure = failure_to_wire(KeyError("a customer's name"))
    assert failure.code == "internal"
    assert "customer" not in failure.message + repr(failure.facts)
