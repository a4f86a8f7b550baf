"""Ten thousand shards on a real disk: what an idle one costs in memory and descriptors."""

import asyncio
import tracemalloc
from pathlib import Path

from streamkit.runtime.real import real_runtime
from streamkit.storage import LogDirectory, StorageConfig
from tests.oracles_storage import seal

SHARDS = [number.to_bytes(16, "big") for number in range(1, 10_001)]
CONFIG = StorageConfig(reserve_bytes=0, free_bytes_min=0, journal_bytes=1 << 20, group_bytes_max=1 << 19)
SHARD_BYTES_MAX = 8 * 1024
DESCRIPTORS_MAX = 50               # beside those of segments


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_ten_thousand_shards_open_within_bounds_of_memory_and_descriptors(tmp_path):
    path = str(tmp_path / "data")

    async def create():
        directory = await LogDirectory.open(path, runtime=real_runtime(), config=CONFIG)
        await directory.create_shards(SHARDS)
        for number, uuid in enumerate(SHARDS[:1000]):
            directory.shards[uuid].append(seal([b"x"]), now_ms=number, epoch=1, durability="fsync")
        await directory.close()

    async def reopen():
        before = descriptors()
        tracemalloc.start()
        directory = await LogDirectory.open(path, runtime=real_runtime(), config=CONFIG)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(directory.shards) == len(SHARDS)
        assert held < len(SHARDS) * SHARD_BYTES_MAX
        assert descriptors() - before < DESCRIPTORS_MAX
        assert [directory.shards[uuid].log_end for uuid in (SHARDS[0], SHARDS[-1])] == [2, 0]
        for uuid in SHARDS[:1000]:
            log = directory.shards[uuid]
            assert await log.read_cold(0, log.log_end, 4096)
        assert descriptors() - before < CONFIG.files_open_max + DESCRIPTORS_MAX
        await directory.close()

    asyncio.run(create())
    idle = tmp_path / "data" / "shards" / SHARDS[-1].hex() / "super"
    written = idle.stat().st_mtime_ns
    asyncio.run(reopen())
    assert idle.stat().st_mtime_ns == written
