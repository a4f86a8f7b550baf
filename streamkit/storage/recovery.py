"""Opening what an earlier process left: replay the journal, find each log's end, tell a torn tail from damage.

    journal groups ──▶ batches written to their places in segments (idempotent) ──▶ what each shard had durable
    super: synced up to here, or a mark of this boot beyond it ──▶ walk the batches from there ──▶ first unsound place p
                                     p below what was durable: damage. Kept visible; later batches are served
                                     p above it: a torn tail. Cut, even when what follows looks sound
Nothing acknowledged lies past what was durable, and nothing is guessed. Where acknowledgements do not wait for a sync,
a tail that no kill could have torn like that makes the copy uncertain. Runs on another thread than the loop.
Read `recover_shard` first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from streamkit._core.files import crc32c
from streamkit._core.log import Segment
from streamkit._core.producers import ProducerTable
from streamkit._core.segment import BAD, SHORT, TRAILER, ZERO, Walk, find_batch, read_trailer, walk
from streamkit.runtime.interfaces import Disk, File
from streamkit.storage.checkpoint import unpack_epochs, write_super
from streamkit.storage.cut import finish_cut
from streamkit.storage.journal_files import HEADER_BYTES, SUFFIX, read_header
from streamkit.storage.journal_reader import KIND_BATCH, JournalEntry, JournalGroup, JournalHole, read_groups
from streamkit.storage.marks import MarkRead, read_mark
from streamkit.storage.shard_log import Damage
from streamkit.storage.super_slots import SLOT_BYTES, ShardFacts, read_slots

logger = logging.getLogger("streamkit.storage")
_WINDOW_BYTES = 4 << 20
_FLAG_EPOCH_START = 2
_FLAG_CLOSE = 4
_BATCH_HEADER_BYTES = 112


@dataclass(slots=True)
class Replay:
    """What the journal told. durable: shard → one past its last record known to have been on disk."""

    durable: dict[bytes, int] = field(default_factory=dict)
    doubtful: set[bytes] = field(default_factory=set)      # the last group was torn and names them
    holes: list[tuple[str, JournalHole]] = field(default_factory=list)
    group_number: int = 0
    file_number: int = 0
    batches: int = 0


@dataclass(slots=True)
class Found:
    """One shard as found; becomes a ShardLog."""

    facts: ShardFacts
    generation: int
    bases: list[int]
    log_end: int = 0
    epoch: int = 0
    last_append_ms: int = 0
    epochs: list[tuple[int, int]] = field(default_factory=list)
    producers: ProducerTable = field(default_factory=lambda: ProducerTable(1))
    damages: list[Damage] = field(default_factory=list)
    segments: list[dict[str, int]] = field(default_factory=list)     # base, end, position and what is known of each
    changed: bool = False          # something was replayed, cut or lost: a checkpoint is due
    closing_end: int = 0           # one past the batch that closes the shard; 0 when it is open
    synced: bool = False           # what nothing vouched for was written again and synced


def segment_name(base: int) -> str:
    return f"{base:020d}.log"


def read_facts(disk: Disk, path: str) -> tuple[int, ShardFacts] | None:
    """(generation, facts) of a shard's `super`; None when it is missing or both slots are bad."""
    if not disk.exists(f"{path}/super"):
        return None
    file = disk.open(f"{path}/super")
    try:
        slot = read_slots(file.read(2 * SLOT_BYTES, 0))
    finally:
        file.close()
    facts = ShardFacts.from_bytes(slot[1]) if slot else None
    return (slot[0], facts) if slot and facts else None


# ---- the journal ----------------------------------------------------------------------------------------------


def replay_journal(disk: Disk, directory: str, shards: dict[bytes, tuple[str, Found]], *, same_boot: bool) -> Replay:
    """Bring what the journal holds into the segments. shards: uuid → (path, what `super` said)."""
    replay = Replay()
    files = []
    for name in disk.list(directory):
        if not name.endswith(SUFFIX):
            continue
        file = disk.open(f"{directory}/{name}")
        header = read_header(file.read(HEADER_BYTES, 0))
        named = name[: -len(SUFFIX)]
        # With its header gone, a file's groups still say which number they were written under.
        files.append((header[0] if header else int(named) if named.isdigit() else 0, file))
    files.sort(key=lambda pair: pair[0])
    open_segments: dict[tuple[bytes, int], File] = {}
    last: tuple[File, int, JournalGroup] | None = None
    try:
        for number, file in files:
            replay.file_number = max(replay.file_number, number)
            for item in read_groups(file, number):
                if isinstance(item, JournalHole):
                    replay.holes.append((file.path, item))
                    logger.error("journal.damaged", extra={"facts": {"path": file.path, "position": item.position}})
                    continue
                if last is not None:
                    _replay_group(disk, *last, replay, shards, open_segments, torn=None)
                last = (file, number, item)
        if last is not None:
            _replay_group(disk, *last, replay, shards, open_segments, torn=set() if same_boot else replay.doubtful)
    finally:
        for opened in (*open_segments.values(), *(file for _, file in files)):
            opened.close()
    return replay


def _replay_group(
    disk: Disk,
    file: File,
    number: int,
    group: JournalGroup,
    replay: Replay,
    shards: dict[bytes, tuple[str, Found]],
    open_segments: dict[tuple[bytes, int], File],
    *,
    torn: set[bytes] | None,
) -> None:
    """number: of the journal file. torn: None when a later group proves that this one was synced; else collects
    shards it left in doubt."""
    replay.group_number = max(replay.group_number, group.number)
    for uuid, end in group.durable:
        if not _is_void(shards.get(uuid), number, group.number, before=1):
            replay.durable[uuid] = max(end, replay.durable.get(uuid, 0))
    listed = tuple(entry for entry in group.entries if not _is_void(shards.get(entry.uuid), number, group.number))
    group = replace(group, entries=listed)
    batches = {entry: _read_batch(file, entry) for entry in group.entries if entry.kind == KIND_BATCH}
    whole = all(batches.values())
    if torn is not None and not whole:
        # Its sync cannot have returned: nothing of these shards in this group was acknowledged.
        lost = {entry.uuid for entry in batches}
        torn |= lost & shards.keys()
        group = replace(group, entries=tuple(entry for entry in group.entries if entry.uuid not in lost))
    for entry in group.entries:
        known = shards.get(entry.uuid)
        if known is None:
            continue                                            # dropped since
        replay.durable[entry.uuid] = max(entry.end, replay.durable.get(entry.uuid, 0))
        batch = batches.get(entry)
        path, found = known
        if not batch or entry.end <= max(found.facts.sequence, found.facts.log_start):
            continue
        segment = open_segments.get((entry.uuid, entry.segment_base))
        if segment is None:
            if len(open_segments) >= 128:
                for opened in open_segments.values():
                    opened.close()
                open_segments.clear()
            segment = disk.open(f"{path}/{segment_name(entry.segment_base)}", create=True)
            open_segments[entry.uuid, entry.segment_base] = segment
        segment.write([batch], entry.position)
        found.changed = True
        replay.batches += 1


def _is_void(known: tuple[str, Found] | None, number: int, group: int, *, before: int = 0) -> bool:
    """Whether the shard's log was cut since that group was written. before: it speaks of the group before it."""
    if known is None:
        return False
    facts = known[1].facts
    if number > facts.settled_file:
        return bool(before and facts.settled_file and group == facts.settled_group + before)
    return number < facts.settled_file or group <= facts.settled_group + before


def _read_batch(file: File, entry: JournalEntry) -> bytes | None:
    data = file.read(entry.size, entry.data_position)
    found = walk(data, 0, entry.base, crc32c(entry.uuid))
    return data if len(found.batches) == 1 and found.position == entry.size and found.sequence == entry.end else None


# ---- one shard ------------------------------------------------------------------------------------------------


def find_shard(disk: Disk, path: str, new_incarnation: bytes) -> Found:
    """What a shard's directory says before the journal is replayed."""
    read = read_facts(disk, path)
    bases = sorted(int(name[:-4]) for name in disk.list(path) if name.endswith(".log") and name[:-4].isdigit())
    if read is None:
        start = bases[0] if bases else 0
        facts = ShardFacts(incarnation=new_incarnation, certain=False, has_producers=True, log_start=start,
                           sequence=start, segment_base=start)  # fmt: skip
        return Found(facts, 0, bases, changed=True)
    generation, facts = read
    if facts.cutting:
        generation, facts = finish_cut(disk, path, generation, facts, bases)
        bases = sorted(int(name[:-4]) for name in disk.list(path) if name.endswith(".log") and name[:-4].isdigit())
    return Found(facts, generation, bases)


def recover_shard(
    disk: Disk, path: str, uuid: bytes, found: Found, durable: int, producers_max: int, boot_id: str
) -> None:
    """Complete `found`: where the log ends, what is lost, who produced. durable: from the journal."""
    facts = found.facts
    durable = max(durable, facts.sequence)
    seed = crc32c(uuid)
    if found.changed:
        names = disk.list(path)
        found.bases = sorted(int(name[:-4]) for name in names if name.endswith(".log") and name[:-4].isdigit())
    for base, after in zip(found.bases, [*found.bases[1:], None], strict=False):
        if after is not None and after <= facts.log_start:
            _remove(disk, path, base)                           # a removal that was interrupted
    found.bases = [base for base, after in zip(found.bases, [*found.bases[1:], None], strict=False)
                   if after is None or after > facts.log_start]  # fmt: skip
    mark = read_mark(disk, path, boot_id, seed, facts.incarnation, producers_max)
    if mark is not None and not (
        mark.facts.sequence > facts.sequence and (mark.facts.memory_mode or mark.facts.sequence <= durable)
    ):
        mark = None
    begin = mark.facts if mark else facts
    found.changed = found.changed or mark is not None           # what lies before the mark is not synced
    found.epoch, found.last_append_ms, found.closing_end = begin.epoch, begin.last_append_ms, begin.closing_end
    # The file is replaced before `super` is: it may speak of what comes after, which the walk finds if it is there.
    found.epochs = mark.epochs if mark else _find_epochs(disk, path, found, seed, begin)
    scan = _Scan(disk, path, seed, found, durable, producers_max, mark)
    scan.run()
    if found.damages:
        found.facts = replace(found.facts, certain=False, doubtful=False)
        found.changed = True


class _Scan:
    """The walk over a shard's batches after its checkpoint, or after its mark."""

    def __init__(
        self, disk: Disk, path: str, seed: int, found: Found, durable: int, producers_max: int, mark: MarkRead | None
    ) -> None:
        self.disk, self.path, self.seed, self.found, self.durable = disk, path, seed, found, durable
        self.producers_max = producers_max
        self.mark = mark
        self.begin = mark.facts if mark else found.facts
        self.sequence = self.begin.sequence

    def run(self) -> None:
        found, facts = self.found, self.begin
        start = self._start()
        self._begin_producers(start)
        self.sequence = start[1]
        for base, after in zip(found.bases, [*found.bases[1:], None], strict=False):
            segment: dict[str, int] = {"base": base, "end": base, "position": 0, "measured": 0}
            if base < start[0]:
                # With no other behind it, records may be missing at its end: nothing is appended to it.
                segment["end"] = after if after is not None else start[1]
                segment["sealed"] = 1
                self._measure_sealed(segment)
                found.segments.append(segment)
                continue
            if base != self.sequence and base != start[0]:
                if self.durable <= self.sequence or base < self.sequence:
                    if base > self.sequence:
                        self._doubt()
                    self._discard(base)
                    continue
                self._lose(segment_name(base), 0, base, "missing records")
            if base == start[0] == facts.segment_base and start[2] == facts.position:
                segment.update(position=start[2], end=start[1], batches=facts.batches, measured=1,
                               first_append_ms=facts.first_append_ms, headers_crc=facts.headers_crc,
                               last_append_ms=facts.last_append_ms if facts.batches else 0)  # fmt: skip
            else:
                segment.update(batches=0, measured=1, first_append_ms=0, headers_crc=0)
                self.sequence = max(self.sequence, base)
            self._walk(segment)
            found.segments.append(segment)
        held = max((segment["end"] for segment in found.segments), default=found.facts.log_start)
        if held < start[1]:
            self.sequence, before = held, self.sequence        # the last files are gone, with what was synced
            self._lose("", 0, start[1], "missing records")
            self.sequence = max(before, start[1])
        if self.sequence < self.durable:
            self._lose("", 0, self.durable, "missing records")
        found.log_end = self.sequence
        if found.synced:
            self.disk.sync_directory(self.path)

    def _discard(self, base: int) -> None:
        # Beyond a torn tail, or left from before one: nothing in it was acknowledged. Gone for good before appends.
        _remove(self.disk, self.path, base)
        self.disk.sync_directory(self.path)
        self.found.changed = True

    def _start(self) -> tuple[int, int, int]:
        """(segment base, sequence, position) to walk from: the checkpoint, or mark, when its file reaches it."""
        facts, bases = self.begin, self.found.bases
        if facts.segment_base in bases and (facts.position == 0 or self._size(facts.segment_base) >= facts.position):
            return facts.segment_base, facts.sequence, facts.position
        earlier = [base for base in bases if base <= facts.segment_base]
        if facts.segment_base in bases:
            return facts.segment_base, facts.segment_base, 0    # shorter than it was: find out what is left
        if earlier and facts.position:
            return earlier[-1], earlier[-1], 0
        return facts.segment_base, facts.sequence, 0            # nothing there yet

    def _size(self, base: int) -> int:
        file = self.disk.open(f"{self.path}/{segment_name(base)}")
        try:
            return file.size()
        finally:
            file.close()

    def _measure_sealed(self, segment: dict[str, int]) -> None:
        # Bytes and times of a segment before the checkpoint: by its trailer, else all of it and its first header.
        file = self.disk.open(f"{self.path}/{segment_name(segment['base'])}")
        try:
            size = file.size()
            trailer = read_trailer(file.read(96, max(0, size - 96)), self.seed)
            if trailer and trailer["base"] == segment["base"] and trailer["bytes"] <= size:
                segment["end"] = min(segment["end"], trailer["end"])
                segment["position"] = trailer["bytes"]
                segment["first_append_ms"] = trailer["first_append_ms"]
                segment["last_append_ms"] = trailer["last_append_ms"]
                return
            segment["position"] = size
            header = file.read(_BATCH_HEADER_BYTES, 0)
            if walk(header, 0, segment["base"], self.seed, with_body=False).needed > _BATCH_HEADER_BYTES:
                segment["first_append_ms"] = int.from_bytes(header[24:32], "little")
        finally:
            file.close()

    def _walk(self, segment: dict[str, int]) -> None:
        name = segment_name(segment["base"])
        file = self.disk.open(f"{self.path}/{name}")
        try:
            size = file.size()
            window = _WINDOW_BYTES
            while True:
                position = segment["position"]
                data = file.read(min(window, size - position), position)
                walked = walk(data, position, self.sequence, self.seed, epoch_min=self.found.epoch,
                              headers_crc=segment.get("headers_crc", 0))  # fmt: skip
                self._take(segment, walked)
                self._write_again(file, data, position, walked)
                if walked.stop == SHORT and walked.needed > len(data) and position + len(data) < size:
                    window = max(window, walked.needed)
                    continue
                if walked.position >= size or walked.stop == TRAILER:
                    segment["sealed"] = walked.stop == TRAILER
                    return
                if walked.position > position and walked.stop == SHORT and walked.position + walked.needed <= size:
                    continue
                if self._step_over(segment, file, size, walked):
                    continue
                return
        finally:
            file.close()

    def _write_again(self, file: File, data: bytes, position: int, walked: Walk) -> None:
        # After a failed sync the system calls pages clean that never reached the disk, and a later sync passes over
        # them. So what is not known to be durable is written once more and synced, before anybody serves it: readers
        # may have seen it before the restart, and are not sent back. It is a group's worth at most.
        fresh = next((batch[0] for batch in walked.batches if batch[1] >= self.durable), walked.position)
        if fresh < walked.position and not self.found.facts.memory_mode:
            file.write([data[fresh - position : walked.position - position]], fresh)
            file.sync()
            self.found.synced = True

    def _take(self, segment: dict[str, int], walked: Walk) -> None:
        found = self.found
        for _, base, records, _, append_ms, epoch, flags, who, who_epoch, who_sequence in walked.batches:
            found.last_append_ms = max(found.last_append_ms, append_ms)
            if not found.epochs or found.epochs[-1][0] < epoch:
                found.epochs.append((epoch, base))
            if not flags & _FLAG_EPOCH_START:
                found.closing_end = base + records if flags & _FLAG_CLOSE else 0
            if who:
                found.producers.replay(who, who_epoch, who_sequence, records, base, append_ms, flags)
        if walked.batches:
            found.changed = True
            segment["first_append_ms"] = segment.get("first_append_ms", 0) or walked.batches[0][4]
            segment["last_append_ms"] = walked.batches[-1][4]
            segment["batches"] = segment.get("batches", 0) + len(walked.batches)
            found.epoch = walked.epoch
        segment["headers_crc"] = walked.headers_crc
        segment["position"], segment["end"] = walked.position, walked.sequence
        self.sequence = walked.sequence

    def _step_over(self, segment: dict[str, int], file: File, size: int, walked: Walk) -> bool:
        """At an unsound place. True: damage was noted and the walk goes on behind it."""
        position = walked.position
        after = [base for base in self.found.bases if base > segment["base"]]
        if self.sequence >= self.durable or (after and after[0] == self.sequence):
            if walked.stop in (BAD, ZERO) and not (after and after[0] == self.sequence):
                self._doubt()
            self._cut(segment, file, position)                  # in the second case a trailer that was torn
            return False
        place = find_batch(file.read(size - position, position), self.seed, self.sequence + 1, self.durable)
        segment["measured"] = 0
        if place is None:
            self._lose(file.path, position, after[0] if after else self.durable, "not a sound batch")
            segment["position"] = position
            segment["broken"] = 1
            return False
        self._lose(file.path, position, place[1], "not a sound batch" if walked.stop == BAD else "unwritten")
        segment["position"] = position + place[0]
        segment["end"] = self.sequence
        return True

    def _doubt(self) -> None:
        """Without syncs nothing vouches for the end of the log. A write that a kill broke off leaves the beginning of a
        batch; anything else that is unsound there may have been acknowledged: other bytes, or a hole where a write that
        went astray should lie. Noted before the cut hides it."""
        found = self.found
        if found.facts.memory_mode and (found.facts.certain or found.facts.doubtful):
            found.facts = replace(found.facts, certain=False, doubtful=False)
            found.generation += 1
            write_super(self.disk, self.path, found.facts, found.generation)

    def _cut(self, segment: dict[str, int], file: File, position: int) -> None:
        # Zeros first: whatever becomes of the shorter size, no old batch follows the cut at once.
        file.write([bytes(min(112, file.size() - position))], position)
        file.truncate(position)
        file.sync()
        segment["position"] = position
        self.found.changed = True
        facts = {"path": file.path, "position": position, "sequence": self.sequence}
        logger.info("segment.cut", extra={"facts": facts})

    def _lose(self, path: str, position: int, next_sequence: int, reason: str) -> None:
        self.found.damages.append(Damage(path or self.path, position, self.sequence, next_sequence, reason))
        logger.error("segment.damaged", extra={"facts": {"path": path or self.path, "position": position,
                     "sequence": self.sequence, "next_sequence": next_sequence, "reason": reason}})  # fmt: skip
        self.sequence = next_sequence

    def _begin_producers(self, start: tuple[int, int, int]) -> None:
        """The producers' state at `start`: the newest snapshot at or before it, then the batches in between."""
        found = self.found
        if self.mark is not None:
            found.producers = self.mark.producers
            return
        found.producers = ProducerTable(self.producers_max)
        if not found.facts.has_producers:
            return
        began: tuple[int, int, int] | None = None
        for base in reversed([base for base in found.bases if base <= start[0]]):
            snapshot = _read_snapshot(self.disk, f"{self.path}/{base:020d}.psn", self.producers_max)
            if snapshot is not None and snapshot[2] <= start[1]:
                found.producers, began = snapshot[0], (base, snapshot[2], snapshot[1])
                break
        bases = [base for base in found.bases if base <= start[0]]
        if began is None and bases:
            began = (bases[0], bases[0], 0)
        for base in bases:
            if began is not None and base >= began[0]:
                place = (began[1], began[2]) if base == began[0] else (base, 0)
                self._replay_producers(base, *place, start)

    def _replay_producers(self, base: int, sequence: int, position: int, start: tuple[int, int, int]) -> None:
        end = start[2] if base == start[0] else None
        for walked in _walk_headers(self.disk, self.path, base, sequence, position, self.seed, end):
            for _, first, records, _, append_ms, _, flags, who, epoch, number in walked.batches:
                if who:
                    self.found.producers.replay(who, epoch, number, records, first, append_ms, flags)


def _walk_headers(
    disk: Disk, path: str, base: int, sequence: int, position: int, seed: int, end: int | None
) -> Iterator[Walk]:
    """Window after window of a segment's batches from `position` on, up to the first unsound header. end: of what
    counts of the file; None: its size."""
    file = disk.open(f"{path}/{segment_name(base)}")
    try:
        size = file.size() if end is None else end
        window = _WINDOW_BYTES
        while position < size:
            walked = walk(file.read(min(window, size - position), position), position, sequence, seed, with_body=False)
            yield walked
            if walked.position == position:
                if walked.stop != SHORT or walked.needed <= window:
                    return
                window = walked.needed
            position, sequence = walked.position, walked.sequence
    finally:
        file.close()


def _find_epochs(disk: Disk, path: str, found: Found, seed: int, begin: ShardFacts) -> list[tuple[int, int]]:
    """The epochs of what lies before `begin`: from their file; when that is unsound, from the batches themselves.

    Logs are compared by them: with none, the newest log would count as the oldest. What cannot be read counts as of the
    last epoch, which nobody else has there, and the copy as damaged.
    """
    epochs = [pair for pair in _read_epochs(disk, path) if pair[1] < begin.sequence]
    if begin.epoch == (epochs[-1][0] if epochs else 0):
        return epochs
    logger.error("epochs.damaged", extra={"facts": {"path": path, "epoch": begin.epoch, "sequence": begin.sequence}})
    epochs, sequence = [], found.facts.log_start
    for base in found.bases:
        if sequence < base or base >= begin.sequence:
            break
        sequence, end = base, begin.position if base == begin.segment_base else None
        for walked in _walk_headers(disk, path, base, base, 0, seed, end):
            for _, first, _, _, _, epoch, *_ in walked.batches:
                if not epochs or epochs[-1][0] < epoch:
                    epochs.append((epoch, first))
            sequence = walked.sequence
    if sequence < begin.sequence:
        found.facts = replace(found.facts, certain=False, doubtful=False, damaged=True)
    if not epochs or epochs[-1][0] < begin.epoch:
        epochs.append((begin.epoch, min(sequence, max(begin.sequence - 1, 0))))
    found.changed = True
    return epochs


def _read_snapshot(disk: Disk, path: str, producers_max: int) -> tuple[ProducerTable, int, int] | None:
    if not disk.exists(path):
        return None
    file = disk.open(path)
    try:
        return ProducerTable.from_bytes(file.read(file.size(), 0), producers_max)
    finally:
        file.close()


def _read_epochs(disk: Disk, path: str) -> list[tuple[int, int]]:
    if not disk.exists(f"{path}/epochs"):
        return []
    file = disk.open(f"{path}/epochs")
    try:
        return unpack_epochs(file.read(file.size(), 0)) or []
    finally:
        file.close()


def _remove(disk: Disk, path: str, base: int) -> None:
    for suffix in (".log", ".idx", ".psn"):
        if disk.exists(f"{path}/{base:020d}{suffix}"):
            disk.remove(f"{path}/{base:020d}{suffix}")


def read_closing(disk: Disk, path: str, uuid: bytes, found: Found) -> bytes | None:
    """The batch that closes the shard, None when it is open. Its segment is walked: a shard closes once."""
    held = [facts for facts in found.segments if facts["base"] < found.closing_end <= facts["end"]]
    if not found.closing_end or not held:
        return None
    sequence, position, size = held[0]["base"], 0, held[0]["position"]
    file = disk.open(f"{path}/{segment_name(sequence)}")
    try:
        window = _WINDOW_BYTES
        while position < size:
            data = file.read(min(window, size - position), position)
            walked = walk(data, position, sequence, crc32c(uuid), sequence_max=found.closing_end)
            if walked.sequence == found.closing_end and walked.batches:
                at, _, _, length, *_ = walked.batches[-1]
                return data[at - position : at - position + length]
            if walked.position == position:
                if walked.stop != SHORT or walked.needed <= window:
                    return None                                 # damaged, and noted as such
                window = walked.needed
            position, sequence = walked.position, walked.sequence
    finally:
        file.close()
    return None


def make_segments(shard: object, found: Found) -> list[Segment]:
    """The Segment objects of a found shard, none of them open."""
    made = []
    for facts in found.segments:
        segment = Segment(shard, facts["base"])  # type: ignore[arg-type]
        segment.end, segment.position = facts["end"], facts["position"]
        segment.written_position = facts["position"]
        segment.measured = bool(facts.get("measured"))
        segment.first_append_ms = facts.get("first_append_ms", 0)
        segment.last_append_ms = facts.get("last_append_ms", 0)
        segment.batches = facts.get("batches", 0)
        segment.headers_crc = facts.get("headers_crc", 0)
        segment.index_whole = facts["position"] == 0
        segment.dirty = found.changed
        segment.sealed = facts is not found.segments[-1] or bool(facts.get("sealed") or facts.get("broken"))
        if segment.sealed is False and segment.end != found.log_end:
            segment.sealed = True
        made.append(segment)
    return made
