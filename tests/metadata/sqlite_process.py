"""One of several processes on a SQLite store: counts a key up by compare-and-swap, then says what it heard of all keys.

Called as `python -m tests.metadata.sqlite_process FILE NAME COUNT`; prints the number of changes it won.
"""

import asyncio
import sys

from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.metadata.view import View
from streamkit.runtime.real import real_runtime


async def count_up(path, name, count):
    store = await SqliteStore.open(path, real_runtime(), shared=True)
    view = View(store, "counts/", lambda key, value, revision: None)
    await view.open()
    won = 0
    while won < count:
        value, revision = await store.read("counts/all")
        if await store.compare_and_swap("counts/all", revision, b"%d" % (int(value or b"0") + 1)):
            won += 1
    await store.register(f"counts/done-{name}", b"", 60_000)
    while sum(key.startswith("counts/done-") for key in view.entries) < 3:      # noqa: ASYNC110 - the view has no event
        await asyncio.sleep(0.01)
    print(int(view.entries["counts/all"].value))
    await view.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(count_up(sys.argv[1], sys.argv[2], int(sys.argv[3])))
