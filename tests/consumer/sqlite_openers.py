"""Workers that claim positions in new SQLite files at the same moment, as processes of one worker do.

Called as `python -m tests.consumer.sqlite_openers DIRECTORY PROCESSES FILES FORM`, with FORM thread or loop; prints how
many claims were granted at the first try.
"""

import asyncio
import multiprocessing
import sys
from pathlib import Path

from streamkit.consumer.exactly_once import Claim
from streamkit.consumer.positions.sqlite import SQLitePosition


def claim_one(path, index, form):
    claim = Claim(application="a", stream="s", shard=f"shard-{index}", shard_uuid=f"{index:032x}", application_ms=1,
                  lease_epoch=1, place=(0, 0))
    if form == "thread":
        sink = SQLitePosition(path).open(claim)
        assert sink.claim() == (0, 0)
        mode = sink.connection.execute("PRAGMA journal_mode").fetchone()
        sink.close()
    else:
        async def claimed():
            sink = SQLitePosition(path).open_async(claim)
            assert await sink.claim() == (0, 0)
            mode = sink.connection.execute("PRAGMA journal_mode").fetchone()
            await sink.close()
            return mode

        mode = asyncio.run(claimed())
    assert mode == ("wal",)


def claim_all(paths, index, form, together, granted):
    for path in paths:
        together.wait(timeout=30)
        claim_one(path, index, form)
        with granted.get_lock():
            granted.value += 1


def main(directory, processes, files, form):
    context = multiprocessing.get_context("fork")
    together, granted = context.Barrier(processes), context.Value("i", 0)
    paths = [str(Path(directory, f"{number}.sqlite")) for number in range(files)]
    claimers = [
        context.Process(target=claim_all, args=(paths, index, form, together, granted)) for index in range(processes)
    ]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()
    print(granted.value)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
