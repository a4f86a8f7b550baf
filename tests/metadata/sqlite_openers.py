"""Processes that open new SQLite stores at the same moment, as the nodes of a new local cluster do.

Called as `python -m tests.metadata.sqlite_openers DIRECTORY PROCESSES FILES`; prints how many openings succeeded.
"""

import asyncio
import multiprocessing
import sys
from pathlib import Path

from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.runtime.real import real_runtime


async def open_one(path):
    store = await SqliteStore.open(path, real_runtime(), shared=True)
    await store.close()


def open_all(paths, together, opened):
    for path in paths:
        together.wait(timeout=30)
        asyncio.run(open_one(path))
        with opened.get_lock():
            opened.value += 1


def main(directory, processes, files):
    context = multiprocessing.get_context("fork")
    together, opened = context.Barrier(processes), context.Value("i", 0)
    paths = [str(Path(directory, f"{number}.sqlite")) for number in range(files)]
    openers = [context.Process(target=open_all, args=(paths, together, opened)) for _ in range(processes)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    print(opened.value)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
