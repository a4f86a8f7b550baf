"""The promises of the libraries, beyond those that every client has: judged as in `checkers.py`, which calls these."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from streamkit.simulator.handling import is_wanted
from streamkit.simulator.oracle import History, Put, folded


def elders_are_shut_out(history: History) -> Iterator[str]:
    """Once a younger instance of a name had its first put taken, nothing more of an elder one is stored, anywhere; and

    in no shard does a record of an elder lie behind one of a younger.
    """
    opened = sorted((each.opened, each.rank) for each in history.instances if each.opened)
    for shard, records in history.final.items():
        youngest = (0, -1)
        for sequence, value in sorted(records.items()):
            put = history.puts.get(value)
            if put is None or put.instance is None:
                continue
            rank = put.instance.rank
            if rank < youngest:
                yield f"record {name_of(value)} at {shard.hex()[:8]} {sequence} lies behind one of a younger instance"
            youngest = max(youngest, rank)
            if any(moment < put.moment and rank < younger for moment, younger in opened):
                yield f"record {name_of(value)} was put by an elder instance after a younger one had begun"


def the_youngest_is_not_shut_out(history: History) -> Iterator[str]:
    """Only another instance can shut one out."""
    for instance in history.instances:
        others = [each for each in history.instances if each is not instance]
        if instance.fenced and not any(not each.opened or each.rank > instance.rank for each in others):
            yield f"{instance.producer} was shut out of its name, and nobody younger is there"


def halted_until_resumed(history: History) -> Iterator[str]:
    """Behind a put that failed nothing of its key is stored before somebody said so, with "halt" nothing at all."""
    stored = {value for records in history.final.values() for value in records.values()}
    puts: dict[str, list[tuple[bytes, Put]]] = {producer: [] for producer in history.halting}
    for value, put in history.puts.items():
        if put.producer in puts:
            puts[put.producer].append((value, put))
    for producer, whole in history.halting.items():
        resumed = history.resumed.get(producer, [])
        held: dict[str, float] = {}            # until when nothing of a key may be stored
        failed: list[tuple[int, float]] = []
        for value, put in puts[producer]:
            if value in stored:
                if put.key and held.get(put.key, 0) > (put.settled or float("inf")):
                    yield f"record {name_of(value)} is stored behind one of its key that failed"
                if whole == "halt" and any(told < put.moment and until > put.moment for told, until in failed):
                    yield f"record {name_of(value)} was put while all was halted, and is stored"
            elif put.settled:
                until = min(
                    (began for key, began, done in resumed if done > put.settled and key in (None, put.key)),
                    default=float("inf"),
                )
                held[put.key] = max(held.get(put.key, 0), until)
                failed.append((put.settled, until))


def is_owed(history: History, value: bytes) -> bool:
    """Whether the application was to handle the record, and did not give it up."""
    return value not in history.dead and _wants(history, value)


def _wants(history: History, value: bytes) -> bool:
    put = history.puts.get(value)
    return history.where is None or put is None or is_wanted(history.where, put.key, len(value))


def nothing_unwanted_is_handled(history: History) -> Iterator[str]:
    """A condition lets nothing through that does not match."""
    if history.where is None:
        return
    for shard, sequences in history.processed.items():
        for sequence in sequences:
            value = history.read[shard][sequence]
            if not _wants(history, value):
                yield f"record {name_of(value)} was handled, which {history.where} does not hold for"


def failures_end_as_dead_letters(history: History) -> Iterator[str]:
    """What fails however often it is tried lies among the dead letters once the checkpoint is past it; and of the

    others only what was in the hands of workers that died.
    """
    for shard, checkpoint in history.final_checkpoints.items():
        for sequence, value in history.final.get(shard, {}).items():
            failed = value in history.poisoned and value not in history.dead
            if failed and history.skipped(shard) <= sequence < checkpoint:
                yield f"record {name_of(value)} failed for good, and is no dead letter"
    for value, why in history.dead.items():
        if value not in history.puts:
            yield "there is a dead letter that nobody put"
        elif value not in history.poisoned and why != "ProcessDied":
            yield f"record {name_of(value)} is a dead letter for {why}, and never failed"


def a_reset_brings_records_again(history: History) -> Iterator[str]:
    """What lies behind the position that an operator chose last is handled after that, though it was before."""
    if not history.resets or not history.resets[-1].done:
        return
    reset = history.resets[-1]
    for shard, start in reset.positions.items():
        processed = history.processed.get(shard, {})
        for sequence, value in history.final.get(shard, {}).items():
            if start <= sequence < history.final_checkpoints.get(shard, 0) and is_owed(history, value) and (
                processed.get(sequence, 0) < reset.asked
            ):
                yield f"record {name_of(value)} was not handled again after a reset to {start}"


def states_are_those_of_their_positions(history: History) -> Iterator[str]:
    """Whoever takes a shard over finds the state that belongs to the checkpoint, and of what was announced the same."""
    ends: dict[bytes, list[int]] = {}
    sums: dict[bytes, list[bytes]] = {}
    for shard in {seen.shard for seen in history.states}:
        ends[shard], sums[shard] = [], [b""]
        for sequence, value in sorted(history.final.get(shard, {}).items()):
            ends[shard].append(sequence)
            sums[shard].append(folded(sums[shard][-1], value))
    for seen in history.states:
        found = [("", seen.checkpoint, seen.state)]
        if seen.prepared is not None:
            found.append(("announced ", seen.prepared[0], seen.prepared[2]))
            if seen.prepared[0] <= seen.checkpoint:
                yield f"{seen.worker} found {seen.prepared[0]} announced, and the checkpoint {seen.checkpoint} beyond"
        for what, sequence, state in found:
            if state != sums[seen.shard][bisect_left(ends[seen.shard], sequence)]:
                yield f"{seen.worker} found another {what}state at {seen.shard.hex()[:8]} {sequence} than belongs there"


OF_CONSUMERS = (
    states_are_those_of_their_positions, a_reset_brings_records_again, nothing_unwanted_is_handled,
    failures_end_as_dead_letters,
)  # fmt: skip
OF_PRODUCERS = (elders_are_shut_out, the_youngest_is_not_shut_out, halted_until_resumed)


def name_of(value: bytes) -> str:
    """Of a record, for people."""
    return value[:40].split(b" ")[0].decode(errors="replace")
