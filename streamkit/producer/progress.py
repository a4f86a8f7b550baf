"""How far a named producer's channels are stored: what `app_seq` is for.

    settled: everything up to here is stored      entries: put here, oldest first      resumed: found in the log
    ────────────────────────────────────────▶ | 18 stored, 19 on its way, 20 stored … | 22 (put before a restart)

Each record that is put with a number carries it, with its channel and with the channel's `settled` at that time, in a
header of its own. So the log itself says what is stored; a note (`resumption.py`) says how far everything is, and from
which place in each shard the rest must be looked for. That place moves on by `snapshots`: the ends of the shards as
they were known at some time. Whatever is put after a snapshot is stored behind it.

Knows neither clocks nor connections. Puts come from any thread, the rest from the sender's loop: hence the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, Self

import msgspec

from streamkit._core.outcome import PutHandle, known
from streamkit.errors import InvalidRequest
from streamkit.model.limits import CHANNEL_CHARACTERS_MAX
from streamkit.producer.entry import PutResult
from streamkit.runtime.threads import Lock

HEADER = "app-seq"                         # of a record: msgpack array of channel, number, settled + 1
NUMBER_MAX = (1 << 64) - 1
NOTHING = -1                               # settled, when nothing is
SNAPSHOTS_MAX = 300                        # longer than a record may be on its way, at one a second

Handle = PutHandle[PutResult]
Ends = Mapping[bytes, int]                 # shard's uuid → a sequence

_Number = Annotated[int, msgspec.Meta(ge=0)]


class Mark(NamedTuple):
    """What a record's header says. settled: one past the last number up to which all was stored when it was put."""

    channel: str
    number: _Number
    settled: _Number


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Mark).decode


def read_mark(header: bytes | None) -> Mark | None:
    """None: a record that was put without a number, or a program of its own used the header's name."""
    try:
        return None if header is None else _decode(header)
    except msgspec.MsgspecError:
        return None


def check_number(channel: str, number: int) -> None:
    """Raises InvalidRequest."""
    if not isinstance(number, int) or not 0 <= number <= NUMBER_MAX:
        raise InvalidRequest(f"app_seq must be 0..2**64-1, got {number!r}", try_="use a line number or an offset",
                             field="app_seq")  # fmt: skip
    if len(channel) > CHANNEL_CHARACTERS_MAX:
        raise InvalidRequest(f"a channel's name has at most {CHANNEL_CHARACTERS_MAX} characters, got {len(channel)}",
                             try_="choose a shorter one", field="channel")  # fmt: skip


@dataclass(slots=True, eq=False)
class Entry:
    """One number that was put."""

    number: int
    stamp: int                             # the snapshot that its record lies behind
    handle: Handle | None = None           # None: it is being put
    failed: Handle | None = None           # of the try before


@dataclass(slots=True)
class Channel:
    settled: int = NOTHING
    entries: deque[Entry] = field(default_factory=deque)
    open: dict[int, Entry] = field(default_factory=dict)         # of `entries`, by number
    resumed: dict[int, PutResult] = field(default_factory=dict)  # stored by an earlier instance, not put again yet
    resumed_last: int = NOTHING

    @property
    def last(self) -> int:
        """The highest that was put, or settled."""
        return self.entries[-1].number if self.entries else self.settled

    def advance(self) -> None:
        while self.entries:
            entry = self.entries[0]
            if entry.handle is None or entry.handle.outcome not in ("stored", "cancelled"):
                return
            self.settled = entry.number
            self.open.pop(entry.number, None)
            self.entries.popleft()

    def oldest_stamp(self, newest: int) -> int:
        if self.resumed:
            return 0
        return self.entries[0].stamp if self.entries else newest


class Progress:
    """All channels of one producer in one stream."""

    def __init__(
        self, settled: Mapping[str, int], stored: Iterable[tuple[Mark, PutResult]], ends: Ends, duplicate: PutResult
    ) -> None:
        """settled: of the note. stored: records found behind `ends`, where the note told to look.

        duplicate: the result of a put whose number was settled long ago.
        """
        self._duplicate = duplicate
        self.changed = True
        self._lock = Lock()
        self._channels = {name: Channel(number) for name, number in settled.items()}
        self._newest = 0
        self._snapshots: dict[int, Ends] = {0: ends}
        for mark, result in stored:
            channel = self._channels.setdefault(mark.channel, Channel())
            channel.settled = max(channel.settled, mark.settled - 1)
            channel.resumed[mark.number] = result
        for channel in self._channels.values():
            for number in [number for number in channel.resumed if number <= channel.settled]:
                del channel.resumed[number]
            channel.resumed_last = max(channel.resumed, default=NOTHING)

    def settled(self, name: str) -> int | None:
        """Everything that was put in the channel up to this number is stored; None: nothing is known of it."""
        with self._lock:
            channel = self._channels.get(name)
            if channel is None:
                return None
            channel.advance()
            return None if channel.settled == NOTHING else channel.settled

    def begin(self, name: str, number: int) -> Handle | Entry:
        """What has the number already, or an Entry that must end with `accepted` or `withdrawn`.

        Raises InvalidRequest for a number below one that was put, unless that one failed.
        """
        with self._lock:
            channel = self._channels.setdefault(name, Channel())
            channel.advance()
            if number <= channel.settled:
                return known(self._duplicate)
            entry = channel.open.get(number)
            if entry is not None:
                if entry.handle is None or entry.handle.outcome != "failed":
                    raise _refused(name, number, "it is on its way")
                error = entry.handle.exception()
                if getattr(error, "facts", {}).get("sent"):
                    return entry.handle            # it may be stored: only its token tells
                entry.handle, entry.failed = None, entry.handle
                return entry
            if number <= channel.last:
                raise _refused(name, number, f"{channel.last} was put before it")
            found = channel.resumed.pop(number, None)
            stamp = 0 if number <= channel.resumed_last else self._newest
            entry = Entry(number, stamp)
            channel.entries.append(entry)
            channel.open[number] = entry
            self.changed = True
            if found is not None:
                entry.handle = known(found)
                return entry.handle
            return entry

    def header(self, name: str, number: int) -> bytes:
        """The value of HEADER."""
        return _encode(Mark(name, number, self._channels[name].settled + 1))

    def accepted(self, name: str, entry: Entry, handle: Handle) -> None:
        with self._lock:
            self.changed = True
            entry.handle = handle
            channel = self._channels[name]
            if entry.number > channel.resumed_last:
                channel.resumed.clear()            # whoever resumed has left them out

    def withdrawn(self, name: str, entry: Entry) -> None:
        """It was not taken: as if it had not been put."""
        with self._lock:
            if entry.failed is not None:
                entry.handle = entry.failed
                return
            channel = self._channels[name]
            del channel.open[entry.number]
            channel.entries.remove(entry)

    def snapshot(self, ends: Ends) -> tuple[dict[str, int], Ends]:
        """For the note: what is settled, and from where the rest is to be looked for.

        ends: one past what is known to be stored in each shard by now.
        """
        with self._lock:
            if len(self._snapshots) < SNAPSHOTS_MAX:     # else something stuck holds them all
                self._newest += 1
                self._snapshots[self._newest] = ends
            oldest = self._newest
            for channel in self._channels.values():
                channel.advance()
                oldest = min(oldest, channel.oldest_stamp(self._newest))
            for stamp in [stamp for stamp in self._snapshots if stamp < oldest]:
                del self._snapshots[stamp]
            self.changed = any(channel.entries or channel.resumed for channel in self._channels.values())
            found = self._snapshots[oldest]
            return {
                name: channel.settled for name, channel in self._channels.items() if channel.settled != NOTHING
            }, found


class Numbered:
    """One put with a number. handle: what has the number already, or None: then whoever enters sets it."""

    __slots__ = ("_channel", "_entry", "_progress", "handle", "header")

    def __init__(self, progress: Progress, channel: str, number: int) -> None:
        self._progress, self._channel = progress, channel
        begun = progress.begin(channel, number)
        self._entry = begun if isinstance(begun, Entry) else None
        self.handle: Handle | None = None if isinstance(begun, Entry) else begun
        self.header = progress.header(channel, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._entry is None:
            return
        if self.handle is None:
            self._progress.withdrawn(self._channel, self._entry)
        else:
            self._progress.accepted(self._channel, self._entry, self.handle)


def _refused(name: str, number: int, why: str) -> InvalidRequest:
    return InvalidRequest(f'app_seq {number} of channel "{name[:80]}" cannot be put: {why}',
                          try_="numbers of a channel grow; go on behind last_app_seq()", field="app_seq")  # fmt: skip
