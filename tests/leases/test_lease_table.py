"""The kernel against its twin, and against bytes it did not write."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.lease_table import LeaseTable
from tests import oracles_leases

SHARDS = [bytes([n]) * 16 for n in range(5)]


@dataclass
class Item:
    shard: bytes
    lease_epoch: int
    number: int
    sequence: int


def owned_table(*, checkpoint: int = 0) -> LeaseTable:
    table = LeaseTable()
    table.add(SHARDS[0], checkpoint)
    table.grant(SHARDS[0], 7, 1)
    return table


actions = st.one_of(
    st.tuples(st.just("grant"), st.sampled_from(SHARDS), st.integers(1, 3)),
    st.tuples(st.just("free"), st.sampled_from(SHARDS), st.booleans()),
    st.tuples(st.just("drain"), st.sampled_from(SHARDS), st.none()),
    st.tuples(st.just("pause"), st.sampled_from(SHARDS), st.none()),
    st.tuples(st.just("resume"), st.sampled_from(SHARDS), st.none()),
    st.tuples(st.just("open"), st.sampled_from(SHARDS), st.none()),
    st.tuples(st.just("complete"), st.sampled_from(SHARDS), st.none()),
    st.tuples(st.just("checkpoint"), st.sampled_from([*SHARDS, b"x" * 16, b"short"]),
              st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 20))),
)


def act(table: LeaseTable, twin: oracles_leases.LeaseTable, action: tuple) -> bytes:
    name, shard, argument = action
    lease = twin.leases.get(shard, oracles_leases.Lease())
    changes = b""
    if name == "checkpoint":
        results, changes = table.checkpoint([Item(shard, *argument)], 5)
        assert results == (twin.checkpoint(shard, *argument),)
    elif name == "grant" and lease.state == "ready":
        table.grant(shard, argument, lease.lease_epoch + 1)
        twin.grant(shard, argument)
    elif name == "free" and lease.owner:
        table.free(shard, argument)
        twin.free(shard)
    elif name == "drain" and lease.state == "owned":
        table.drain(shard)
        lease.state = "draining"
    elif name == "pause" and lease.state in ("owned", "draining"):
        table.pause(shard)
        lease.state = "paused"
    elif name == "resume" and lease.state == "paused":
        table.resume(shard)
        lease.state, lease.owner = "ready", 0
    elif name == "open" and lease.state == "waiting":
        table.open(shard)
        lease.state = "ready"
    elif name == "complete":
        table.complete(shard)
        lease.state = "complete"
    return changes


@given(st.lists(actions, max_size=60))
def test_the_table_does_what_its_twin_does(steps):
    table, twin = LeaseTable(), oracles_leases.LeaseTable()
    for number, shard in enumerate(SHARDS):
        table.add(shard, 3, number > 2)
        twin.add(shard, 3, number > 2)

    for step in steps:
        act(table, twin, step)

        for shard, lease in twin.leases.items():
            assert table.row(shard)[:4] == (lease.state, lease.owner, lease.lease_epoch, lease.checkpoint)
            assert table.holds(shard, lease.owner, lease.lease_epoch) == (lease.owner != 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_replayed_checkpoints_give_the_same_rows(items):
    live, replayed = LeaseTable(), LeaseTable()
    for table in (live, replayed):
        for shard in SHARDS:
            table.add(shard, 2)
            table.grant(shard, 1, 1)

    _, changes = live.checkpoint([Item(SHARDS[n], epoch, number, sequence) for n, epoch, number, sequence in items], 9)
    replayed.replay(changes, 9)

    assert replayed.dump(0, 99) == live.dump(0, 99)


def test_a_repeated_checkpoint_number_gets_the_stored_answer():
    table = owned_table(checkpoint=10)

    first = table.checkpoint([Item(SHARDS[0], 1, 1, 5)], 0)[0]
    again, changes = table.checkpoint([Item(SHARDS[0], 1, 1, 50)], 0)

    assert first == again == ("behind",) and changes == b""
    assert table.row(SHARDS[0])[3] == 10


def test_a_checkpoint_of_an_older_lease_epoch_is_fenced():
    table = owned_table()
    table.free(SHARDS[0], True)
    table.grant(SHARDS[0], 8, 2)

    assert table.checkpoint([Item(SHARDS[0], 1, 1, 5)], 0) == (("fenced",), b"")


def test_a_freed_lease_takes_no_checkpoint_before_it_has_an_owner():
    table = owned_table()
    table.free(SHARDS[0], False)

    assert table.checkpoint([Item(SHARDS[0], 1, 1, 5)], 0)[0] == ("fenced",)


def test_owners_that_crash_without_progress_are_counted_and_progress_ends_the_count():
    table = owned_table()
    table.free(SHARDS[0], True)
    table.grant(SHARDS[0], 8, 2)
    table.free(SHARDS[0], True)
    assert table.row(SHARDS[0])[4:6] == (2, True)

    table.grant(SHARDS[0], 9, 3)
    table.checkpoint([Item(SHARDS[0], 3, 1, 1)], 0)

    assert table.row(SHARDS[0])[4] == 0


def test_renew_tells_lost_draining_and_held():
    table = LeaseTable()
    for n, shard in enumerate(SHARDS[:4]):
        table.add(shard, 0)
        table.grant(shard, 1 if n < 3 else 2, 1)
    table.drain(SHARDS[1])

    lost, draining, held = table.renew(1, [(SHARDS[0], 1), (SHARDS[1], 1), (SHARDS[2], 9), (SHARDS[3], 1), (b"?", 1)])

    assert (lost, draining, held) == ([SHARDS[2], SHARDS[3], b"?"], [SHARDS[1]], 2)


@given(st.integers(0, 400), st.sets(st.integers(0, 399)))
def test_leases_are_found_after_growing_and_removing(count, removed):
    shards = [n.to_bytes(2, "little") * 8 for n in range(count)]
    table = LeaseTable()
    for n, shard in enumerate(shards):
        table.add(shard, n)

    table.remove(shards[n] for n in removed if n < count)

    assert [shard in table for shard in shards] == [n not in removed for n in range(count)]
    assert all(table.row(shard)[3] == n for n, shard in enumerate(shards) if n not in removed)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_and_nothing_is_read_past_their_end(data):
    table = owned_table()
    before = table.dump(0, 9)

    for method in (table.restore, lambda changes: table.replay(changes, 0)):
        if data:
            with pytest.raises(ValueError):
                method(data)

    assert table.dump(0, 9) == before


def test_unknown_shards_raise_key_error():
    table = owned_table()

    for call in (lambda: table.row(b"y" * 16), lambda: table.drain(b"short"), lambda: table.grant(SHARDS[1], 1, 1)):
        with pytest.raises(KeyError):
            call()
