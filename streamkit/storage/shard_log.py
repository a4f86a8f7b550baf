"""One shard's log: the hot part is `_core.log.ShardCore`; here is what opens files, rolls, seeks and waits.

    <base:020>.log   batches of a segment          <base:020>.idx   its sparse index, a cache
    <base:020>.psn   producers' state at a place in it              epochs, super   see `checkpoint` and `super_slots`

All methods run on the event loop except those that say otherwise. Read `read_cold` and `drop_before` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from streamkit._core.batch import read_header
from streamkit._core.index import SparseIndex
from streamkit._core.log import NodeLog, Segment, ShardCore
from streamkit._core.producers import ProducerTable
from streamkit._core.segment import END, SHORT, TRAILER_SIZE, find_batch, read_trailer, walk
from streamkit.errors import CorruptFile, SequenceTrimmed
from streamkit.runtime.interfaces import Disk, Executor, File
from streamkit.storage.disk_errors import MEDIUM, cannot_open
from streamkit.storage.retention import SegmentAge, drop_point
from streamkit.storage.super_slots import ShardFacts

logger = logging.getLogger("streamkit.storage")
_WINDOW_BYTES = 1 << 20
_FLUSHED_SECONDS = 0.002           # how long to wait before looking again whether the flusher got further,
_FLUSHED_LOOKS = 500               # and how often


@dataclass(frozen=True, slots=True)
class Damage:
    """Records that were durable and cannot be read: [sequence, next_sequence), from `position` of a file on."""

    path: str
    position: int
    sequence: int
    next_sequence: int
    reason: str


class ShardLog(ShardCore):
    """A shard's log. Its owner gives each append the time and the epoch, and moves the high watermark.

    facts: what `super` said last; generation: of the slot it came from. promised_epoch: what is older is refused; on
    disk. certain: nothing that was acknowledged is missing, so the copy may vote.
    """

    __slots__ = (
        "_disk", "_executor", "_on_name", "_on_roll", "_on_trim", "damages", "dropped", "facts", "generation", "marks",
        "path", "promised_epoch", "rewritten", "sealed_new", "trim_to",
    )  # fmt: skip

    def __init__(
        self,
        node: NodeLog,
        uuid: bytes,
        *,
        disk: Disk,
        executor: Executor,
        on_roll: Callable[[ShardLog, Segment], None],
        on_name: Callable[[ShardLog, Segment], None],
        on_trim: Callable[[ShardLog], None],
        path: str,
        facts: ShardFacts,
        generation: int,
        log_end: int,
        epoch: int,
        last_append_ms: int,
        producers: ProducerTable,
        epochs: list[tuple[int, int]],
    ) -> None:
        super().__init__(
            node, uuid, log_start=facts.log_start, log_end=log_end, epoch=epoch, last_append_ms=last_append_ms,
            producers=producers, epochs=epochs,
        )  # fmt: skip
        self._disk, self._executor = disk, executor
        self._on_roll, self._on_name, self._on_trim = on_roll, on_name, on_trim
        self.path = path
        self.facts, self.generation = facts, generation
        self.certain = facts.certain
        self.promised_epoch = facts.promised_epoch
        self.memory_marked = facts.memory_mode
        self.damages: list[Damage] = []
        self.sealed_new: list[Segment] = []        # sealed, and no trailer written yet
        self.trim_to = facts.log_start             # where log_start goes as soon as that is on disk
        self.marks = 0                             # taken by this process; see `marks`
        self.rewritten = 0                         # segments whose file was replaced, see `changes`
        self.dropped = False

    @property
    def incarnation(self) -> bytes:
        """Names the life of this copy on this disk: another one has another."""
        return self.facts.incarnation

    @property
    def doubtful(self) -> bool:
        """Not certain, but only because the last group of the journal does not read back after a loss of power: it was
        being written, so nothing is missing, or it is damaged. Damage of one copy at one place is all that a cluster
        is built to bear; so when every copy answers, one of them has what may be missing in a doubtful one."""
        return self.facts.doubtful and not self.certain and not self.damages

    @property
    def changes(self) -> int:
        """Grows whenever what lies in the files is replaced; what was read before does not count."""
        return self.cuts + self.rewritten

    # ---- files ------------------------------------------------------------------------------------------------

    def segment_path(self, segment: Segment, suffix: str = ".log") -> str:
        return f"{self.path}/{segment.base:020d}{suffix}"

    def open_segment(self, segment: Segment) -> None:
        """Open the segment's file; files unused for longest are closed when there are too many."""
        try:
            segment.use_file(self._disk.open(self.segment_path(segment), create=segment.position == 0))
        except FileNotFoundError:
            raise CorruptFile(
                f"{self.segment_path(segment)} is gone", try_="restore the file from a copy",
                path=self.segment_path(segment), position=0, reason="missing file", shard=self.uuid.hex(),
                sequence=segment.base, next_sequence=segment.end,
            ) from None  # fmt: skip
        except OSError as cause:
            raise cannot_open(cause, self.segment_path(segment)) from cause
        self.node.close_surplus_files(segment)

    def roll(self, now_ms: int) -> Segment:
        """Begin a new segment; the last one is sealed by the next checkpoint."""
        if self.segments and not self.segments[-1].sealed:
            full = self.segments[-1]
            full.sealed = True
            self.sealed_new.append(full)
            self._on_roll(self, full)
        segment = Segment(self, self.log_end)
        segment.index_whole = segment.measured = True
        self.open_segment(segment)
        self.segments.append(segment)
        return segment

    def want_name(self, segment: Segment) -> None:
        """Called once for a segment that grows: from when its name is durable, large shares are synced in place."""
        self._on_name(self, segment)

    def settle_name(self, segment: Segment) -> None:
        """Make the file's name durable, for a batch that no journal file can hold. Waits for the disk."""
        try:
            self._disk.sync_directory(self.path)
        except OSError as cause:
            raise cannot_open(cause, self.path) from cause
        segment.named = True

    @property
    def stored_bytes(self) -> int:
        """Bytes of batches on disk or on their way there."""
        return sum(segment.position for segment in self.segments)

    def bytes_after(self, sequence: int) -> int:
        """Stored bytes of the records at `sequence` and after; inside a segment by the share of its records."""
        total = 0
        for segment in self.segments:
            if segment.base >= sequence:
                total += segment.position
            elif segment.end > sequence:
                total += segment.position * (segment.end - sequence) // (segment.end - segment.base)
        return total

    def appended_since(self, at_ms: int) -> tuple[int, int]:
        """(records, stored bytes) appended at `at_ms` or later, nearly: inside a segment by its index in memory, or

        by the share of its time where that is not. Never waits for the disk.
        """
        records = size = 0
        if at_ms <= self.last_append_ms:
            for segment in reversed(self.segments):
                count, first_ms, last_ms = segment.end - segment.base, segment.first_append_ms, segment.last_append_ms
                if first_ms >= at_ms:
                    records, size = records + count, size + segment.position
                    continue
                if segment.index_whole:
                    relative, position = segment.index.find_time(at_ms)
                    records, size = records + count - relative, size + segment.position - position
                elif 0 < first_ms < last_ms:
                    share = max(0.0, (last_ms - at_ms) / (last_ms - first_ms))
                    records, size = records + int(count * share), size + int(segment.position * share)
                break
        return records, size

    def arrived_ms(self, sequence: int, limit: int) -> int | None:
        """When the record at `sequence`, or the first kept after it and before `limit`, arrived; None: there is none.

        Where it is on the disk alone, a time that is no later: of its segment's first record, if that is known.
        """
        at = max(sequence, self.log_start)
        if at >= limit:
            return None
        batches = self.read(at, limit, 1)
        if batches:
            return int.from_bytes(batches[0][24:32], "little")
        return self._segment_at(at).first_append_ms or self.first_append_ms()

    # ---- reading ----------------------------------------------------------------------------------------------

    async def read_cold(self, start: int, limit: int, bytes_max: int) -> list[bytes | memoryview]:
        """read() that may wait for the disk; the loop does not. Raises SequenceTrimmed, CorruptFile."""
        found = self.read(start, limit, bytes_max)
        while found is None:
            segment = self._segment_at(start)
            if segment.file is None:
                self.open_segment(segment)
            await self._executor.run(self._warm, segment, start, bytes_max)
            if start < self.log_start:
                raise SequenceTrimmed(
                    f"sequence {start} was removed by retention", try_="read from the trim horizon",
                    shard=self.uuid.hex(), sequence=start, log_start=self.log_start,
                )  # fmt: skip
            if start >= self.log_end:
                return []                                      # it was cut meanwhile
            found = self.read_segments(start, min(limit, self.log_end), bytes_max, False)
        return found

    def _warm(self, segment: Segment, start: int, bytes_max: int) -> None:
        """On another thread: bring what read_segments() will ask for into the page cache, through a file of its own."""
        try:
            file = self._disk.open(self.segment_path(segment))
        except FileNotFoundError:
            return                                             # dropped meanwhile, or lost: reading says which
        try:
            index = self._read_index(segment, file) if not segment.index_whole else segment.index
            _, position = index.find(max(0, start - segment.base))
            file.read(bytes_max + 2 * _WINDOW_BYTES, position)
        finally:
            file.close()

    def _segment_at(self, sequence: int) -> Segment:
        found = [segment for segment in self.segments if segment.base <= sequence]
        if not found or sequence >= found[-1].end:
            raise self.missing(found[-1] if found else None, sequence)
        return found[-1]

    def load_index(self, segment: Segment, nowait: bool) -> bool:
        """Make the segment's index whole: from its .idx file, else from the segment. False: it would wait."""
        if nowait and segment.written_position > _WINDOW_BYTES:
            return False
        if segment.file is None:
            self.open_segment(segment)
        file = segment.file
        assert file is not None, "just opened"
        segment.index = self._read_index(segment, file)
        segment.index_whole = True
        return True

    def _read_index(self, segment: Segment, file: File | object) -> SparseIndex:
        """The .idx file as far as it is sound, its last entry checked, then the batches after it."""
        index = self._stored_index(segment)
        sequence, position = index.find(1 << 40)
        end = segment.written_position
        while position < end:
            data = file.read(min(_WINDOW_BYTES, end - position), position)  # type: ignore[union-attr]
            found = walk(data, position, segment.base + sequence, self.seed, with_body=False)
            if not found.batches and position and index.find(1 << 40) == (sequence, position):
                index, sequence, position = SparseIndex(), 0, 0      # the file lied: start over without it
                continue
            for batch in found.batches:
                index.offer(batch[1] - segment.base, batch[0], batch[4])
            if found.position == position:
                if found.stop != SHORT or found.needed <= len(data) or position + found.needed > end:
                    break                                            # damage; reading reports it
                data = file.read(found.needed, position)             # type: ignore[union-attr]
                found = walk(data, position, segment.base + sequence, self.seed, with_body=False)
                if not found.batches:
                    break
                index.offer(found.batches[0][1] - segment.base, position, found.batches[0][4])
            position, sequence = found.position, found.sequence - segment.base
        return index

    def _stored_index(self, segment: Segment) -> SparseIndex:
        path = self.segment_path(segment, ".idx")
        if not self._disk.exists(path):
            return SparseIndex()
        try:
            file = self._disk.open(path)
            try:
                return SparseIndex.from_bytes(file.read(file.size(), 0), segment.written_position)
            finally:
                file.close()
        except OSError:
            logger.warning("index.unreadable", extra={"facts": {"path": path}})
            return SparseIndex()

    def damaged(self, segment: Segment, position: int, sequence: int) -> CorruptFile:
        """The error for bytes that were written and are not a batch now; looks for where reading can go on."""
        path = self.segment_path(segment)
        _, next_sequence = self.resume_after(segment, position, sequence)
        self.note_damage(Damage(path, position, sequence, next_sequence, "not a sound batch"))
        return CorruptFile(
            f"{path} is damaged at byte {position}: records {sequence} to {next_sequence} cannot be read",
            try_="restore the file from a copy, or read on from next_sequence", path=path, position=position,
            reason="not a sound batch", shard=self.uuid.hex(), sequence=sequence, next_sequence=next_sequence,
        )  # fmt: skip

    def missing(self, segment: Segment | None, sequence: int) -> CorruptFile:
        """The error for a sequence that no segment holds."""
        after = min((known.base for known in self.segments if known.base > sequence), default=self.log_end)
        reached = max((known.end for known in self.segments if known.base <= sequence), default=self.log_start)
        reached = max(reached, self.log_start)
        if reached <= sequence < self.segment_end:
            self.note_damage(Damage(self.path, 0, reached, after, "missing records"))
        return CorruptFile(
            f"records {sequence} to {after} of the shard are lost to damage",
            try_="restore the file from a copy, or read on from next_sequence", path=self.path, position=0,
            reason="missing", shard=self.uuid.hex(), sequence=sequence, next_sequence=after,
        )  # fmt: skip

    def note_damage(self, damage: Damage) -> bool:
        """Keep it in `damages`. False: its records were known to be damaged."""
        if any(known.sequence <= damage.sequence and damage.next_sequence <= known.next_sequence
               for known in self.damages):  # fmt: skip
            return False
        self.damages.append(damage)
        self.checkpoint_due = True
        logger.error("segment.damaged", extra={"facts": {
            "path": damage.path, "position": damage.position, "sequence": damage.sequence,
            "next_sequence": damage.next_sequence, "reason": damage.reason}})  # fmt: skip
        return True

    def note_epoch(self, epoch: int, sequence: int) -> None:
        """A repaired batch of that epoch begins there: the table may lack the epoch, or have it begin later."""
        starts = dict(self.epochs)
        if starts.get(epoch, sequence) >= sequence:
            starts[epoch] = sequence
            self.epochs[:] = sorted(starts.items())
            self.epoch = max(self.epoch, epoch)

    def resume_after(self, segment: Segment, position: int, sequence: int) -> tuple[int, int]:
        """(position, sequence) of the first batch behind damage at `position`; the segment's end when there is none."""
        if not self._disk.exists(self.segment_path(segment)):
            return segment.written_position, segment.end
        file = self._disk.open(self.segment_path(segment))
        try:
            at = position                                      # records may be missing without a byte in their place
            while at < segment.written_position:
                data = file.read(_WINDOW_BYTES, at)
                found = find_batch(data, self.seed, sequence + 1, segment.end)
                if found:
                    return at + found[0], found[1]
                if len(data) < _WINDOW_BYTES:
                    break
                at += len(data) - 200                          # a header may lie across the border
        finally:
            file.close()
        return segment.written_position, segment.end

    # ---- times ------------------------------------------------------------------------------------------------

    def first_append_ms(self) -> int:
        """Append time of the oldest batch kept; 0 when the log is empty. Never waits for the disk.

        Where the beginning of the log is damaged it is the newest batch's: a guess must not make records look old.
        """
        for segment in self.segments:
            if segment.end > self.log_start:
                return segment.first_append_ms or self.last_append_ms
        return 0

    def _first_time(self, segment: Segment) -> int:
        if segment.first_append_ms == 0 and segment.written_position:
            if segment.file is None:
                self.open_segment(segment)
            assert segment.file is not None, "just opened"
            found = walk(segment.file.read(1 << 16, 0), 0, segment.base, self.seed, with_body=False)
            if found.batches:
                segment.first_append_ms = found.batches[0][4]
            elif found.stop == SHORT:
                found = walk(segment.file.read(found.needed, 0), 0, segment.base, self.seed, with_body=False)
                segment.first_append_ms = found.batches[0][4] if found.batches else 0
        return segment.first_append_ms

    async def warm_time(self, at_ms: int) -> None:
        """Read on another thread what sequence_at_time(at_ms) is going to need, so that it does not wait."""
        if at_ms > self.last_append_ms:
            return
        candidates = [segment for segment in self.segments if segment.end > self.log_start]
        for segment in candidates:
            if segment.first_append_ms == 0 and segment.written_position:
                await self._executor.run(self._warm_start, segment)
        place = 0
        while place + 1 < len(candidates) and self._first_time(candidates[place + 1]) < at_ms:
            place += 1
        for segment in candidates[place : place + 1]:
            if not segment.index_whole:
                end = segment.written_position
                index = await self._executor.run(self._index_apart, segment)
                if index is not None and segment.written_position == end and not segment.in_flight:
                    segment.index, segment.index_whole = index, True
            relative, _ = segment.index.find_time(at_ms)
            await self._executor.run(self._warm, segment, segment.base + relative, _WINDOW_BYTES)

    def _warm_start(self, segment: Segment) -> None:
        path = self.segment_path(segment)
        if self._disk.exists(path):
            file = self._disk.open(path)
            try:
                file.read(1 << 16, 0)
            finally:
                file.close()

    def _index_apart(self, segment: Segment) -> SparseIndex | None:
        try:
            file = self._disk.open(self.segment_path(segment))
        except FileNotFoundError:
            return None                                        # dropped meanwhile
        try:
            return self._read_index(segment, file)
        finally:
            file.close()

    def sequence_at_time(self, at_ms: int) -> int:
        """The first sequence of the first batch appended at `at_ms` or later; log_end when there is none.

        May read from the disk; whoever can wait awaits warm_time() first.
        """
        if at_ms > self.last_append_ms:
            return self.log_end
        candidates = [segment for segment in self.segments if segment.end > self.log_start]
        place = 0
        while place + 1 < len(candidates) and self._first_time(candidates[place + 1]) < at_ms:
            place += 1
        for segment in candidates[place:]:
            found = self._sequence_in(segment, at_ms)
            if found is not None:
                return max(found, self.log_start)
        return self.log_end

    def _sequence_in(self, segment: Segment, at_ms: int) -> int | None:
        if not segment.index_whole:
            self.load_index(segment, False)
        relative, _ = segment.index.find_time(at_ms)
        sequence = max(segment.base + relative, self.log_start)
        while sequence < segment.end:
            batches = self.read(sequence, segment.end, _WINDOW_BYTES)
            if batches is None:
                batches = self.read_segments(sequence, segment.end, _WINDOW_BYTES, False) or []
            for batch in batches:
                base = int.from_bytes(batch[8:16], "little")
                if int.from_bytes(batch[24:32], "little") >= at_ms:
                    return base
                sequence = base + int.from_bytes(batch[56:60], "little")
            if not batches:
                return None
        return None

    def segment_ages(self) -> list[SegmentAge]:
        """What the retention rule needs of the segments that may go, oldest first."""
        ages = []
        for segment in self.segments[:-1]:
            if not segment.sealed or segment.end > self.synced_end:
                break
            newest_ms = self._last_time(segment)
            ages.append(SegmentAge(end=segment.end, size_bytes=segment.position, last_append_ms=newest_ms))
        return ages

    def _last_time(self, segment: Segment) -> int:
        if segment.last_append_ms == 0:
            if segment.file is None:
                self.open_segment(segment)
            assert segment.file is not None, "just opened"
            trailer = read_trailer(segment.file.read(TRAILER_SIZE, segment.position), self.seed)
            after = self.segments[self.segments.index(segment) + 1]
            # Not known at all: then the shard's newest time, because a guess must never make records look old.
            segment.last_append_ms = (trailer["last_append_ms"] if trailer else 0) or (
                self._first_time(after) or self.last_append_ms
            )
        return segment.last_append_ms

    # ---- retention --------------------------------------------------------------------------------------------

    def retain(self, *, now_ms: int, retention_ms: int, retention_bytes: int | None, end: int | None = None) -> None:
        """Drop what the stream need not keep any more, below `end`; see retention.drop_point."""
        if len(self.segments) > 1:
            point = drop_point(
                self.segment_ages(), stored_bytes=self.stored_bytes, now_ms=now_ms, retention_ms=retention_ms,
                retention_bytes=retention_bytes,
            )  # fmt: skip
            self.drop_before(point if end is None else min(point, end))

    def drop_before(self, sequence: int) -> None:
        """Give up whole sealed segments that end at or before `sequence`; log_start moves once that is on disk."""
        keep = max(self.log_start, min(sequence, self.synced_end))
        whole = [segment.end for segment in self.segments[:-1] if segment.sealed and segment.end <= keep]
        if whole and max(whole) > self.trim_to:
            self.trim_to = max(whole)
            self._on_trim(self)

    def drop_segments(self, log_start: int) -> list[str]:
        """log_start is durable: forget what lies before it. Returns the paths to remove."""
        self.move_start(log_start)
        self.damages = [damage for damage in self.damages if damage.next_sequence > log_start]
        # The epoch of the record before the first one stays: logs that end there are compared by it.
        starts = [*(start for _, start in self.epochs[1:]), log_start]
        self.epochs[:] = [pair for pair, ends in zip(self.epochs, starts, strict=False) if ends >= log_start]
        gone = [segment for segment in self.segments if segment.end <= log_start and segment.sealed]
        self.take_segments([segment for segment in self.segments if segment not in gone])
        paths: list[str] = []
        for segment in gone:
            if segment.in_flight == 0:
                segment.close_file()
            paths += [self.segment_path(segment, suffix) for suffix in (".log", ".idx", ".psn")]
        return paths

    # ---- scrubbing --------------------------------------------------------------------------------------------

    async def verify(self) -> list[Damage]:
        """Sum every batch on disk again. Returns what is damaged now; it is also kept in `damages`."""
        found: list[Damage] = []
        changes = self.changes
        reached, written = self.log_start, self.segment_end
        for segment in list(self.segments):
            if segment.base > reached:
                found.append(Damage(self.path, 0, reached, segment.base, "missing records"))
            reached = max(reached, segment.end)
            path, end, limit = self.segment_path(segment), min(segment.end, self.segment_end), segment.written_position
            found += await self._executor.run(self._verify, path, segment.base, end, limit)
            if self.changes != changes:
                return await self.verify()                     # what was read is not the log any more
        if reached < written:
            found.append(Damage(self.path, 0, reached, written, "missing records"))
        for damage in found:
            self.note_damage(damage)
        return found

    async def digest(self, start: int, end: int) -> tuple[int, int, int]:
        """(crc, batches, end) over the headers of the batches in [start, end), each of which holds its body's sum.

        Two copies of a log that agree answer the same, however their segments are cut. The end answered is where the
        last batch that was counted ends; lower than `end` when the log, or what of it is in segments, is shorter.
        Raises SequenceTrimmed, CorruptFile.
        """
        if start < self.log_start:
            raise SequenceTrimmed(
                f"sequence {start} was removed by retention", try_="ask from the trim horizon",
                shard=self.uuid.hex(), sequence=start, log_start=self.log_start,
            )  # fmt: skip
        end = min(end, self.log_end)
        for _ in range(_FLUSHED_LOOKS):
            if self.segment_end >= end:
                break
            await asyncio.sleep(_FLUSHED_SECONDS)
        end = min(end, self.segment_end)
        crc, batches, reached, changes = 0, 0, start, self.changes
        for segment in list(self.segments):
            if segment.end <= start or segment.base >= end:
                continue
            if segment.base > reached and reached > start:
                raise self.missing(segment, reached)
            first = max(start, segment.base)
            relative, position = segment.index.find(first - segment.base) if segment.index_whole else (0, 0)
            place = [position, segment.base + relative, crc, batches]
            damaged = await self._executor.run(
                self._digest, self.segment_path(segment), place, first, min(end, segment.end), segment.written_position
            )
            if self.changes != changes or start < self.log_start:
                return await self.digest(start, end)           # what was read is not the log any more
            if damaged:
                raise self.damaged(segment, place[0], place[1])
            _, reached, crc, batches = place
        return crc, batches, max(reached, start)

    def _digest(self, path: str, place: list[int], first: int, end: int, limit: int) -> bool:
        """place: position, sequence, crc, batches; moved on to the last border at or before `end`. True: damage."""
        if not self._disk.exists(path):
            return True                                        # or it was removed with what it held
        file = self._disk.open(path)
        try:
            window = _WINDOW_BYTES
            while place[1] < end and place[0] < limit:
                data = file.read(min(window, limit - place[0]), place[0])
                if len(data) < min(window, limit - place[0]):
                    return True                                # the file ends before what was written to it
                before = place[1] < first
                found = walk(data, place[0], place[1], self.seed, sequence_max=first if before else end,
                             headers_crc=0 if before else place[2], with_body=False)  # fmt: skip
                if found.batches:
                    place[0], place[1] = found.position, found.sequence
                    if not before:
                        place[2], place[3] = found.headers_crc, place[3] + len(found.batches)
                    continue
                if found.stop == SHORT and len(data) < found.needed <= limit - place[0]:
                    window = found.needed
                elif found.stop == END and before:
                    header = read_header(data)                  # the batch that `first` falls into: not counted
                    place[0], place[1] = place[0] + header.batch_bytes, place[1] + header.record_count
                else:
                    return found.stop != END
            return False
        finally:
            file.close()

    def _verify(self, path: str, base: int, end: int, limit: int) -> list[Damage]:
        if not self._disk.exists(path):
            return [] if base < self.log_start else [Damage(path, 0, base, end, "missing file")]
        file = self._disk.open(path)
        try:
            return list(scan_damage(file, path, self.seed, base, end, limit))
        except OSError as cause:
            if cause.errno not in MEDIUM:
                raise
            return [Damage(path, 0, base, end, "unreadable")]
        finally:
            file.close()


def scan_damage(file: File, path: str, seed: int, base: int, end: int, limit: int) -> list[Damage]:
    """Walk [0, limit) of a segment that holds [base, end): what cannot be read. Runs on any thread."""
    damages: list[Damage] = []
    position, sequence, window = 0, base, _WINDOW_BYTES
    while position < limit and sequence < end:
        data = file.read(min(window, limit - position), position)
        found = walk(data, position, sequence, seed, sequence_max=end)
        moved = found.position > position
        position, sequence = found.position, found.sequence
        if sequence >= end or found.stop == END:
            continue
        if found.stop == SHORT and found.needed > window and position + found.needed <= limit:
            window = found.needed
            continue
        if found.stop == SHORT and moved and position < limit:
            continue
        place = find_batch(file.read(limit - position, position), seed, sequence + 1, end)
        after = (position + place[0], place[1]) if place else (limit, end)
        damages.append(Damage(path, position, sequence, after[1], "not a sound batch"))
        position, sequence = after
        window = _WINDOW_BYTES
    if sequence < end:
        damages.append(Damage(path, position, sequence, end, "the file ends early"))
    return damages
