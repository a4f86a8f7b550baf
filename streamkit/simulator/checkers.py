"""The promises, judged on a finished history. Each checker returns what is wrong, in words; nothing wrong is [].

A run that flipped bits at rest may lose records, if it says so; whatever is still given out must be right.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamkit.simulator.client_checkers import OF_CONSUMERS, OF_PRODUCERS, is_owed, name_of
from streamkit.simulator.oracle import REFUSED, STORED, History


def acknowledged_is_kept(history: History) -> Iterator[str]:
    """A record whose put was answered is where the answer said."""
    for value, put in history.puts.items():
        if put.outcome == STORED and history.final.get(put.shard, {}).get(put.sequence) != value:
            yield f"acknowledged record {name_of(value)} is not at {put.shard.hex()[:8]} {put.sequence}"


def refused_is_absent(history: History) -> Iterator[str]:
    """A record whose put failed for certain, or was cancelled, is nowhere: not read by anybody at any time."""
    for shard, records in (*history.final.items(), *history.read.items()):
        for sequence, value in records.items():
            put = history.puts.get(value)
            if put is not None and put.outcome == REFUSED:
                yield f"record {name_of(value)} was said not to be stored, and is at {shard.hex()[:8]} {sequence}"


def stored_once(history: History) -> Iterator[str]:
    """Producers are idempotent: no record is there twice."""
    places: dict[bytes, tuple[bytes, int]] = {}
    for shard, records in history.final.items():
        for sequence, value in records.items():
            if value in places:
                yield f"record {name_of(value)} is at {places[value][1]} and again at {sequence}"
            places[value] = (shard, sequence)


def in_order_for_its_key(history: History) -> Iterator[str]:
    """Records of one producer and key lie in the order of their puts, in one shard and those that came of it."""
    last: dict[tuple[str, str], tuple[bytes, int]] = {}
    for shard, records in history.final.items():
        for _, value in sorted(records.items()):
            put = history.puts.get(value)
            if put is None or not put.key:
                continue
            before = last.get((put.producer, put.key))
            if before is not None and (before[1] > put.number or not _came_of(history, shard, before[0])):
                yield f"record {name_of(value)} lies after number {before[1]} of its key"
            last[put.producer, put.key] = (shard, put.number)


def _came_of(history: History, shard: bytes, elder: bytes) -> bool:
    return shard == elder or any(_came_of(history, parent, elder) for parent in history.parents.get(shard, ()))


def copied_is_kept(history: History) -> Iterator[str]:
    """What a named producer copied by number, through kills and failures, is there."""
    there = {value for records in history.final.values() for value in records.values()}
    for value in history.copied:
        if value not in there:
            yield f"record {name_of(value)} was to be copied, and is not there"


def read_is_kept(history: History) -> Iterator[str]:
    """What anybody was ever given is still there: nothing uncommitted was read."""
    for shard, records in history.read.items():
        final = history.final.get(shard, {})
        for sequence, value in records.items():
            if final.get(sequence) != value:
                yield f"record {name_of(value)} was read at {shard.hex()[:8]} {sequence}, and is there no more"


def processed_at_least_once(history: History) -> Iterator[str]:
    """Every record below an application's checkpoint was given to some worker."""
    for shard, checkpoint in history.final_checkpoints.items():
        processed = history.processed.get(shard, {})
        for sequence, value in history.final.get(shard, {}).items():
            due = history.skipped(shard) <= sequence < checkpoint
            if due and sequence not in processed and is_owed(history, value):
                yield f"record {name_of(value)} at {shard.hex()[:8]} {sequence} was checkpointed, but never processed"


def one_owner_for_each_lease_epoch(history: History) -> Iterator[str]:
    """At most one worker is granted a lease epoch, and only that one's checkpoints are accepted under it."""
    owners: dict[tuple[bytes, int], str] = {}
    for grant in history.grants:
        owner = owners.setdefault((grant.shard, grant.lease_epoch), grant.worker)
        if owner != grant.worker:
            yield f"lease epoch {grant.lease_epoch} of {grant.shard.hex()[:8]}: {owner} and {grant.worker}"
    for checkpoint in history.checkpoints:
        if checkpoint.result == "ok":
            owner = owners.setdefault((checkpoint.shard, checkpoint.lease_epoch), checkpoint.worker)
            if owner != checkpoint.worker:
                yield (
                    f"checkpoint of {checkpoint.worker} accepted under lease epoch {checkpoint.lease_epoch} of "
                    f"{checkpoint.shard.hex()[:8]}, which is {owner}'s"
                )


def old_owners_are_fenced(history: History) -> Iterator[str]:
    """Once a newer lease epoch was granted, a checkpoint that is sent under an older one is refused."""
    for checkpoint in history.checkpoints:
        if checkpoint.result == "fenced":
            continue
        for grant in history.grants:
            newer = grant.shard == checkpoint.shard and grant.lease_epoch > checkpoint.lease_epoch
            if newer and grant.seen < checkpoint.asked:
                yield (
                    f"{checkpoint.worker} checkpointed {checkpoint.shard.hex()[:8]} under lease epoch "
                    f"{checkpoint.lease_epoch} after {grant.worker} had been granted {grant.lease_epoch}"
                )
                break


def checkpoints_never_fall(history: History) -> Iterator[str]:
    """A new owner starts at or after every checkpoint that had been answered before."""
    accepted = sorted(
        (checkpoint for checkpoint in history.checkpoints if checkpoint.result == "ok"),
        key=lambda checkpoint: checkpoint.lease_epoch,
    )
    for grant in history.grants:
        for checkpoint in accepted:
            if checkpoint.lease_epoch >= grant.lease_epoch:
                break
            if checkpoint.shard == grant.shard and checkpoint.sequence > grant.checkpoint and not _was_reset(
                history, checkpoint.asked, grant.seen
            ):
                yield (
                    f"{grant.worker} was granted {grant.shard.hex()[:8]} at {grant.checkpoint}, below the checkpoint "
                    f"{checkpoint.sequence} of lease epoch {checkpoint.lease_epoch}"
                )
    for shard, final in history.final_checkpoints.items():
        before = [
            seen for seen in history.checkpoints[: history.final_seen]
            if not _was_reset(history, seen.asked, history.moment)
        ]  # fmt: skip
        highest = max((seen.sequence for seen in before if seen.shard == shard and seen.result == "ok"), default=0)
        if highest > final:
            yield f"the last checkpoint of {shard.hex()[:8]} is {final}, but {highest} was accepted"


def _was_reset(history: History, before: int, after: int) -> bool:
    """Whether an operator may have sent the application elsewhere between what was asked and what was seen."""
    return any(reset.asked < after and (not reset.done or before < reset.done) for reset in history.resets)


OF_RECORDS = (stored_once, in_order_for_its_key, refused_is_absent)
OF_LEASES = (
    processed_at_least_once,
    one_owner_for_each_lease_epoch,
    old_owners_are_fenced,
    checkpoints_never_fall,
)
OF_THE_WHOLE = (acknowledged_is_kept, copied_is_kept, read_is_kept, *OF_PRODUCERS, *OF_CONSUMERS)


def judge(history: History, *, rot: bool = False, whole: bool = True) -> list[str]:
    """Everything that is wrong with a history.

    rot: bits were flipped at rest, so anything may be missing. whole: everything was read at the end.
    """
    found = list(history.wrong)
    for checker in OF_RECORDS + (() if rot else OF_LEASES) + (OF_THE_WHOLE if whole and not rot else ()):
        found += checker(history)
    return found
