"""Exactly once: what is written and how far it came are one transaction of SQLite. Kill it whenever you like.

    python -m examples.consumers.exactly_once [bills.sqlite]
"""

import sqlite3
import sys

from streamkit import Batch, Consumer, Context, SQLitePosition

path = sys.argv[1] if len(sys.argv) > 1 else "bills.sqlite"
consumer = Consumer("orders", application="ledger", start="trim_horizon", sink=SQLitePosition(path))


@consumer.handler
def write(orders: Batch[dict[str, float]], ctx: Context) -> None:
    ctx.connection.executemany(
        "INSERT INTO bills VALUES (?, ?)", [(order.value["id"], order.value["total"]) for order in orders]
    )
    print(f"wrote {len(orders)}", flush=True)


if __name__ == "__main__":
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE IF NOT EXISTS bills (id INTEGER, total REAL)")
    consumer.run()
