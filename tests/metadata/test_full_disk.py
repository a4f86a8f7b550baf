"""On a disk without a byte left the metadata can still be changed: what frees the disk has to be written down first."""

from streamkit.metadata.reserve import RESERVE_BYTES
from streamkit.metadata.sqlite_store import SqliteStore
from tests.metadata.conftest import turned_runtime
from tests.small_disk import small_disk

__all__ = ["small_disk"]                     # a fixture


def fill(place):
    """To the last byte."""
    with (place / "filler").open("ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def reserve_of(place):
    return place / "m.sqlite.reserve"


async def test_a_full_disk_takes_changes_of_the_metadata(small_disk):
    runtime = turned_runtime()
    store = await SqliteStore.open(str(small_disk / "m.sqlite"), runtime)
    revision = await store.compare_and_swap("streams/orders", 0, b"active")
    assert reserve_of(small_disk).stat().st_size == RESERVE_BYTES
    assert reserve_of(small_disk).stat().st_mode & 0o777 == 0o600
    fill(small_disk)

    for count in range(20):
        revision = await store.compare_and_swap("streams/orders", revision, bytes([count]) * 10_000)
        assert revision is not None
    assert not reserve_of(small_disk).exists()
    assert await store.read("streams/orders") == (bytes([19]) * 10_000, revision)

    (small_disk / "filler").unlink()
    await store.read("streams/orders")
    assert reserve_of(small_disk).stat().st_size == RESERVE_BYTES
    await store.close()


async def test_a_full_disk_lets_the_metadata_be_opened_and_changed(small_disk):
    path = str(small_disk / "m.sqlite")
    store = await SqliteStore.open(path, turned_runtime())
    revision = await store.compare_and_swap("a", 0, b"1" * 10_000)
    await store.close()
    fill(small_disk)

    store = await SqliteStore.open(path, turned_runtime())
    assert await store.compare_and_swap("a", revision, b"2" * 10_000) is not None
    await store.close()
    assert not reserve_of(small_disk).exists()


async def test_a_disk_too_small_for_the_reserve_does_without(small_disk):
    (small_disk / "m.sqlite").touch()
    fill(small_disk)
    with (small_disk / "filler").open("r+b") as file:
        file.truncate(file.seek(0, 2) - RESERVE_BYTES // 2)

    store = await SqliteStore.open(str(small_disk / "m.sqlite"), turned_runtime())
    assert await store.compare_and_swap("a", 0, b"1") is not None
    assert not reserve_of(small_disk).exists()
    await store.close()
