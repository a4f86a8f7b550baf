"""Facts that are replaced as a whole and must survive a torn write: two slots, written in turn.

    off size slot (one in bytes 0..4096 of the file, one in 4096..8192; the rest of each is zero)
      0   4  magic "SKS1"
      4   4  crc         CRC-32C of bytes 8 .. 20 + body
      8   8  generation  the slot with the higher one holds; a slot is written at (generation % 2) * 4096
     16   4  body bytes
     20      body, a shard's (128 bytes; 104 when written by an older release: the rest counts as zero):
      0  16  incarnation          new when a disk was wiped or restored
     16   4  promised epoch       nothing older is accepted
     20   4  flags                1 certain, 2 memory mode (holds batches that did not ask for a sync), 4 has producers,
                                  8 being cut: what lies behind the checkpoint is void, see `cut`,
                                  16 damage was found: all of the log is summed before it counts as certain,
                                  32 not certain for one reason only: the journal's last group was torn, or is damaged
     24   8  log_start
     32   8  checkpoint: sequence      everything before it is synced in segments
     40   8  checkpoint: segment base
     48   8  checkpoint: position      in that segment
     56   8  checkpoint: batches       in that segment before the position
     64   8  checkpoint: first append time in that segment, ms
     72   8  checkpoint: last append time of the shard, ms
     80   4  checkpoint: headers crc   as in the segment's trailer
     84   4  checkpoint: epoch         of the last batch before it
     88   8  closing end           one past the batch that closes the shard; 0 when it is open
     96   8  settled: journal file       what the journal says of the shard up to this file and group is void:
    104   8  settled: journal group      the log was cut since
    112  16  zero

    a node's body: boot id (36 ASCII bytes, zero filled), clean u8: nothing was left to recover, zero 3

A slot fits one 512-byte sector. With both slots bad the shard's facts are lost: it comes back uncertain.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from streamkit._core.files import crc32c
from streamkit.runtime.interfaces import File

SLOT_BYTES = 4096
_HEAD = struct.Struct("<4sIQI")
_SHARD = struct.Struct("<16sIIQQQQQQQIIQQQ16x")
_SHARD_BYTES_ONCE = 104
SHARD_BYTES = _SHARD.size
_NODE = struct.Struct("<36sB3x")
_BODY_BYTES_MAX = 512 - _HEAD.size


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """A shard's body, as drawn above."""

    incarnation: bytes
    promised_epoch: int = 0
    certain: bool = True
    memory_mode: bool = False
    has_producers: bool = False
    log_start: int = 0
    sequence: int = 0
    segment_base: int = 0
    position: int = 0
    batches: int = 0
    first_append_ms: int = 0
    last_append_ms: int = 0
    headers_crc: int = 0
    epoch: int = 0
    cutting: bool = False
    damaged: bool = False
    doubtful: bool = False
    closing_end: int = 0
    settled_file: int = 0
    settled_group: int = 0

    def to_bytes(self) -> bytes:
        flags = (self.certain | self.memory_mode << 1 | self.has_producers << 2 | self.cutting << 3
                 | self.damaged << 4 | self.doubtful << 5)  # fmt: skip
        return _SHARD.pack(
            self.incarnation, self.promised_epoch, flags, self.log_start, self.sequence, self.segment_base,
            self.position, self.batches, self.first_append_ms, self.last_append_ms, self.headers_crc, self.epoch,
            self.closing_end, self.settled_file, self.settled_group,
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, body: bytes) -> ShardFacts | None:
        if len(body) == _SHARD_BYTES_ONCE:
            body = body.ljust(_SHARD.size, b"\0")
        if len(body) != _SHARD.size:
            return None
        (incarnation, promised_epoch, flags, log_start, sequence, segment_base, position, batches, first_append_ms,
         last_append_ms, headers_crc, epoch, closing_end, settled_file, settled_group,
         ) = _SHARD.unpack(body)  # fmt: skip
        return cls(
            incarnation=incarnation, promised_epoch=promised_epoch, certain=bool(flags & 1),
            memory_mode=bool(flags & 2), has_producers=bool(flags & 4), log_start=log_start, sequence=sequence,
            segment_base=segment_base, position=position, batches=batches, first_append_ms=first_append_ms,
            last_append_ms=last_append_ms, headers_crc=headers_crc, epoch=epoch,
            cutting=bool(flags & 8), damaged=bool(flags & 16), doubtful=bool(flags & 32),
            closing_end=closing_end, settled_file=settled_file, settled_group=settled_group,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node's body, as drawn above."""

    boot_id: str
    clean: bool

    def to_bytes(self) -> bytes:
        return _NODE.pack(self.boot_id.encode("ascii")[:36], self.clean)

    @classmethod
    def from_bytes(cls, body: bytes) -> NodeFacts | None:
        if len(body) != _NODE.size:
            return None
        boot_id, clean = _NODE.unpack(body)
        return cls(boot_id=boot_id.rstrip(b"\0").decode("ascii", "replace"), clean=clean == 1)


def read_slots(data: bytes) -> tuple[int, bytes] | None:
    """(generation, body) of the newest sound slot, or None."""
    found = [slot for slot in (_read_slot(data[:512]), _read_slot(data[SLOT_BYTES : SLOT_BYTES + 512])) if slot]
    return max(found, default=None)


def _read_slot(data: bytes) -> tuple[int, bytes] | None:
    if len(data) < _HEAD.size:
        return None
    magic, crc, generation, size = _HEAD.unpack_from(data)
    end = _HEAD.size + size
    if magic != b"SKS1" or size > _BODY_BYTES_MAX or len(data) < end or crc32c(data[8:end]) != crc:
        return None
    return generation, data[_HEAD.size : end]


def write_slot(file: File, generation: int, body: bytes) -> None:
    """Write the slot of `generation`; the other one stays. Not synced here. Raises OSError."""
    assert len(body) <= _BODY_BYTES_MAX, "a slot fits one sector"
    rest = struct.pack("<QI", generation, len(body)) + body
    slot = b"SKS1" + struct.pack("<I", crc32c(rest)) + rest
    file.write([slot.ljust(512, b"\0")], generation % 2 * SLOT_BYTES)
