"""One worker: running totals by carrier, in a database that several workers share.

A worker may die at any instant, also between its database and its checkpoint. So a batch's totals, and how far the
shard has been counted, change in one transaction: what is delivered again after a crash is recognised by its
sequence and left out. The lease epoch in the same row keeps a worker out that lost its shard and has not noticed yet.

    python -m examples.flights.totals --url streamkit://127.0.0.1:7440 --database totals.sqlite --worker one
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections import Counter

from streamkit import Batch, Checkpointer, RecordProcessor, ShardContext, Worker
from streamkit.errors import LeaseLost

from .data import CarrierTotals

SCHEMA = """
CREATE TABLE IF NOT EXISTS counted (
    shard TEXT PRIMARY KEY, lease_epoch INTEGER NOT NULL, next_sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS totals (
    shard TEXT, carrier TEXT, flights INTEGER NOT NULL, delayed INTEGER NOT NULL, delay_sum INTEGER NOT NULL,
    worst INTEGER, PRIMARY KEY (shard, carrier));
CREATE TABLE IF NOT EXISTS latencies (tenth_ms INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS repeats (worker TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS owners (
    shard TEXT, lease_epoch INTEGER, worker TEXT, since_ns INTEGER, first_batch_ns INTEGER,
    PRIMARY KEY (shard, lease_epoch));
"""
ADD_TOTALS = """
INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (shard, carrier) DO UPDATE SET
    flights = flights + excluded.flights, delayed = delayed + excluded.delayed,
    delay_sum = delay_sum + excluded.delay_sum,
    worst = CASE WHEN worst IS NULL OR excluded.worst > worst THEN excluded.worst ELSE worst END
"""
ADD_LATENCY = "INSERT INTO latencies VALUES (?, ?) ON CONFLICT (tenth_ms) DO UPDATE SET count = count + excluded.count"
ADD_REPEATS = "INSERT INTO repeats VALUES (?, ?) ON CONFLICT (worker) DO UPDATE SET count = count + excluded.count"


def connect(path: str) -> sqlite3.Connection:
    """Safe to share between processes; each statement's transaction is begun by hand."""
    database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.executescript(SCHEMA)
    return database


class Totals(RecordProcessor):
    """One of these for each shard this worker owns."""

    database_path = ""
    worker = ""

    def initialize(self, ctx: ShardContext) -> None:
        self.shard, self.epoch = ctx.shard, ctx.fencing_token
        self.database = connect(self.database_path)
        self.database.execute("BEGIN IMMEDIATE")
        # From here on, a worker with an older lease epoch can no longer write for this shard.
        self.database.execute(
            "INSERT INTO counted VALUES (?, ?, 0) ON CONFLICT (shard) DO UPDATE SET"
            " lease_epoch = max(lease_epoch, excluded.lease_epoch)",
            (self.shard, self.epoch),
        )
        self.database.execute(
            "INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?, NULL)",
            (self.shard, self.epoch, self.worker, time.time_ns()),
        )
        self.database.execute("COMMIT")

    def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
        arrived_ns = time.time_ns()
        self.database.execute("BEGIN IMMEDIATE")
        try:
            self._count(batch, arrived_ns)
            self.database.execute("COMMIT")
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        checkpointer.checkpoint()

    def _count(self, batch: Batch, arrived_ns: int) -> None:
        lease_epoch, next_sequence = self.database.execute(
            "SELECT lease_epoch, next_sequence FROM counted WHERE shard = ?", (self.shard,)
        ).fetchone()
        if lease_epoch != self.epoch:
            raise LeaseLost(f"{self.shard} is counted by another worker now", shard=self.shard, lease_epoch=self.epoch)
        totals: dict[str, CarrierTotals] = {}
        latencies: Counter[int] = Counter()
        repeats, end = 0, next_sequence
        for record in batch:
            if record.sequence < next_sequence:
                repeats += 1
                continue
            flight = json.loads(record.data)
            totals.setdefault(flight["carrier"], CarrierTotals()).add(flight["dep_delay"])
            latencies[(arrived_ns - flight["put_ns"]) // 100_000] += 1
            end = record.sequence + 1
        rows = [(self.shard, c, t.flights, t.delayed, t.delay_sum, t.worst) for c, t in totals.items()]
        self.database.executemany(ADD_TOTALS, rows)
        self.database.executemany(ADD_LATENCY, latencies.items())
        self.database.execute(ADD_REPEATS, (self.worker, repeats))
        self.database.execute("UPDATE counted SET next_sequence = ? WHERE shard = ?", (end, self.shard))
        self.database.execute(
            "UPDATE owners SET first_batch_ns = ? WHERE shard = ? AND lease_epoch = ? AND first_batch_ns IS NULL",
            (time.time_ns(), self.shard, self.epoch),
        )

    def shutdown_requested(self, checkpointer: Checkpointer) -> None:
        checkpointer.checkpoint()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--membership-ms", type=int, default=3_000)
    options = parser.parse_args()
    Totals.database_path, Totals.worker = options.database, options.worker
    Worker(
        "flights", application="totals", start="trim_horizon", processor=Totals, worker=options.worker,
        membership_ms=options.membership_ms, url=options.url,
    ).run()  # fmt: skip


if __name__ == "__main__":
    main()
