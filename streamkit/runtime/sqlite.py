"""SQLite files that several processes open for the first time at one moment."""

from __future__ import annotations

import sqlite3
import time

LOOK_S = 0.005


def lacks_log(connection: sqlite3.Connection) -> bool:
    """Turn the file to a write-ahead log, for good. True: others open it for the first time as well; ask again.

    SQLite turns a file that it has alone, and waits for that nowhere: its time-out covers all but this.
    """
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return True
    return False


def turn_to_log(connection: sqlite3.Connection, seconds: float) -> None:
    """The same, waiting for the others. Raises sqlite3.OperationalError when they take longer."""
    deadline_s = time.monotonic() + seconds
    while lacks_log(connection):
        if time.monotonic() > deadline_s:
            raise sqlite3.OperationalError("database is locked")
        time.sleep(LOOK_S)                     # in a thread of its own; SQLite waits for no lock here
