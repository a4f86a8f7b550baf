"""The short form of fuzz_files.py: sound files, damaged at random; and whole directories with one such file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.errors import CorruptFile, StreamkitError
from streamkit.simulator.disk import _Image, _Inode
from streamkit.storage import LogDirectory
from tests.fuzz.fuzz_files import kind_of, one_input, resealed, seeds, sound_files
from tests.oracles_storage import SHARDS, SMALL, Machine, base_of, body_of, records_of

EDITS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 120), st.integers(4096, 4600), st.integers(0, 1 << 16)),
        st.sampled_from((0, 1, 2, 0x7F, 0x80, 0xFF)) | st.integers(0, 255),
    ),
    max_size=6,
)
WHOLE = settings(max_examples=max(20, settings.default.max_examples // 100))   # a directory is opened in each


def edited(content: bytes, edits: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(content)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    return bytes(damaged)


@pytest.mark.fuzz
@given(seed=st.sampled_from(seeds()), edits=EDITS, cut=st.integers(0, 200), noise=st.binary(max_size=40))
def test_a_damaged_file_is_refused_or_read_within_its_bounds(
    seed: bytes, edits: list[tuple[int, int]], cut: int, noise: bytes
) -> None:
    damaged = seed[:1] + edited(seed[1:], edits)
    one_input(damaged)
    one_input(damaged[: max(1, len(damaged) - cut)] + noise)


@pytest.mark.fuzz
@given(kind=st.integers(0, 10), noise=st.binary(max_size=600))
def test_a_file_of_noise_is_refused(kind: int, noise: bytes) -> None:
    one_input(bytes([kind]) + noise)


def directory_with(path: str, content: bytes) -> Machine:
    machine = Machine()
    for name, whole in sound_files().items():
        parts = name.split("/")[:-1]
        for depth in range(len(parts)):
            machine.disk.names["/".join(parts[: depth + 1])] = None
        body = content if name == path else whole
        machine.disk.names[name] = _Inode(_Image(body), _Image(body))
    machine.disk.durable_names = dict(machine.disk.names)
    return machine


async def salvaged(directory: LogDirectory, shard: bytes) -> dict[int, bytes]:
    """Every batch that can be read, by base; damage is stepped over where the error says."""
    log = directory.shards[shard]
    found, at = {}, log.log_start
    while at < log.log_end:
        try:
            batches = await log.read_cold(at, log.log_end, 1 << 20)
        except CorruptFile as error:
            assert error.facts["next_sequence"] > at
            at = error.facts["next_sequence"]
            continue
        assert batches, "below the end there is something to read, or an error"
        for batch in batches:
            found[base_of(batch)] = body_of(batch)
            at = base_of(batch) + records_of(batch)
    return found


def opened(machine: Machine) -> dict[bytes, dict[int, bytes]] | None:
    """What can be read of the directory; None when it was refused with a typed error."""
    found: dict[bytes, dict[int, bytes]] = {}
    refused = []

    async def main(runtime) -> None:
        try:
            directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        except StreamkitError as error:
            refused.append(error)
            return
        for shard in directory.shards:
            found[shard] = await salvaged(directory, shard)
        for shard in directory.shards:
            directory.shards[shard].drop_before(1)
        await directory.close()

    machine.run(main)
    return None if refused else found


PATHS = sorted(path for path in sound_files() if not path.endswith(("reserve", ".lock")))


@pytest.mark.fuzz
@WHOLE
@given(path=st.sampled_from(PATHS), edits=EDITS, cut=st.integers(0, 70_000) | st.just(0))
def test_a_directory_with_one_damaged_file_gives_back_only_what_was_put(
    path: str, edits: list[tuple[int, int]], cut: int
) -> None:
    content = sound_files()[path]
    sound = opened(directory_with(path, content))
    assert sound is not None and set(sound) == set(SHARDS[:2])

    found = opened(directory_with(path, edited(content, edits)[: max(0, len(content) - cut)]))

    for shard, batches in (found or {}).items():
        for base, body in batches.items():
            assert sound[shard].get(base) == body


@pytest.mark.fuzz
@WHOLE
@given(path=st.sampled_from(PATHS), edits=EDITS)
def test_a_directory_with_one_forged_file_opens_or_is_refused_typed(path: str, edits: list[tuple[int, int]]) -> None:
    content = edited(sound_files()[path], edits)
    opened(directory_with(path, resealed(kind_of(path), content)))
