"""The statements that keep positions in a table, for every database that speaks SQL.

    PRIMARY KEY (application, stream, shard, shard_uuid)
    application_ms, lease_epoch        who claimed it last; smaller ones are refused
    next_sequence, next_sub_sequence   the first record that is not finished

Steps are generators that yield a statement and are sent its rows, so that one text serves connections that block and
connections that are awaited.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from streamkit.consumer.aggregates import Place
from streamkit.consumer.exactly_once import Claim
from streamkit.errors import InvalidUse

Row = Sequence[Any]
Statement = tuple[str, tuple[Any, ...]]
Steps = Generator[Statement, list[Row], Place]
Execute = Callable[[str, tuple[Any, ...]], list[Row]]

TABLE = "streamkit_positions"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?\Z")


class Statements:
    """Of one table. mark: how the database writes a parameter. lock: what keeps a row that was read from changing."""

    def __init__(self, table: str, mark: str, lock: str = "") -> None:
        if not _NAME.match(table):
            raise InvalidUse(f"{table!r} is no name of a table", try_="letters, digits and _; a schema before a dot",
                             argument="table")
        key = f"application = {mark} AND stream = {mark} AND shard = {mark} AND shard_uuid = {mark}"
        self.create = (
            f"CREATE TABLE IF NOT EXISTS {table} (application TEXT NOT NULL, stream TEXT NOT NULL, shard TEXT NOT NULL,"
            " shard_uuid TEXT NOT NULL, application_ms BIGINT NOT NULL, lease_epoch BIGINT NOT NULL,"
            " next_sequence BIGINT NOT NULL, next_sub_sequence BIGINT NOT NULL,"
            " PRIMARY KEY (application, stream, shard, shard_uuid))"
        )
        self._read = (
            "SELECT application_ms, lease_epoch, next_sequence, next_sub_sequence"
            f" FROM {table} WHERE {key}{lock}"
        )
        self._insert = (
            f"INSERT INTO {table} (application, stream, shard, shard_uuid, application_ms, lease_epoch, next_sequence,"
            f" next_sub_sequence) VALUES ({', '.join([mark] * 8)})"
        )
        self._update = (
            f"UPDATE {table} SET application_ms = {mark}, lease_epoch = {mark}, next_sequence = {mark},"
            f" next_sub_sequence = {mark} WHERE {key}"
        )
        self._guarded = (
            f"{self._update} AND next_sequence = {mark} AND next_sub_sequence = {mark} AND (application_ms < {mark}"
            f" OR application_ms = {mark} AND lease_epoch <= {mark}) RETURNING lease_epoch"
        )

    def claim(self, claim: Claim) -> Steps:
        """Inside a transaction. Returns the position to go on at; raises LeaseLost."""
        rows = yield self._read, _key(claim)
        if not rows:
            yield self._insert, (*_key(claim), *claim.fence, *claim.place)
            return claim.place
        application_ms, lease_epoch, *place = rows[0]
        if (application_ms, lease_epoch) > claim.fence:
            raise claim.lost()
        # An application that was made again does not know what the one before it did.
        at = (place[0], place[1]) if application_ms == claim.application_ms else claim.place
        yield self._update, (*claim.fence, *at, *_key(claim))
        return at

    def advance(self, claim: Claim, start: Place, end: Place) -> Steps:
        """Inside a transaction. Raises LeaseLost."""
        rows = yield self._guarded, (*claim.fence, *end, *_key(claim), *start, claim.application_ms, *claim.fence)
        if not rows:
            rows = yield self._read, _key(claim)
            if rows and (rows[0][0], rows[0][1]) > claim.fence:
                raise claim.lost()
            raise claim.moved(start, (rows[0][2], rows[0][3]) if rows else None)
        return end


def _key(claim: Claim) -> tuple[str, str, str, str]:
    return claim.application, claim.stream, claim.shard, claim.shard_uuid


def run(steps: Steps, execute: Execute) -> Place:
    """Every step, one after the other."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send(execute(*statement))
    except StopIteration as end:
        place: Place = end.value
        return place


async def run_async(steps: Steps, execute: Callable[[str, tuple[Any, ...]], Awaitable[list[Row]]]) -> Place:
    try:
        statement = next(steps)
        while True:
            statement = steps.send(await execute(*statement))
    except StopIteration as end:
        place: Place = end.value
        return place


def ended_by_handler() -> InvalidUse:
    return InvalidUse(
        "the handler ended the transaction that the position belongs to",
        try_="leave commit and rollback to the consumer: return, or raise", argument="connection",
    )
