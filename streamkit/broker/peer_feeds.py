"""All feeds to one node: one frame a turn, one window, one timer, and the slow way from disk.

    ready ──turn──▶ a REPLICATE frame          what lies in memory, round and round over the shards that have any
    behind ─────▶ read_cold, one at a time     what must come from disk, within the node's catch-up budget
    news ───20 ms─▶ sections without batches   a high watermark that moved while nothing else was sent

The window counts bytes sent and not acknowledged. A follower that is slow fills it and then costs nothing more: its
feeds remember a position each. One that is gone costs just that. Called by `peer_link`; read `turn` first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamkit.broker.feed import Feed
from streamkit.errors import StreamkitError
from streamkit.protocol.frames import Acknowledgement, FrameWriter
from streamkit.runtime.tasks import Tasks

if TYPE_CHECKING:
    from streamkit.broker.feed import Leading

_NEWS_WITH_BATCHES_MAX = 64    # sections; more wait for their timer rather than make a frame of batches longer


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedsConfig:
    """How much travels to one node before it answers, and how fast a follower may catch up."""

    window_bytes: int = 8 * 1024 * 1024            # sent and not acknowledged, all shards of a node together
    feed_window_bytes: int = 4 * 1024 * 1024       # of one shard
    frame_bytes: int = 512 * 1024                  # a frame takes no further section above that
    section_bytes: int = 256 * 1024                # of one shard before the others have their turn
    catch_up_bytes_per_second: int = 64 * 1024 * 1024      # read from disk for followers, all nodes together
    news_ms: int = 20                              # longest that a high watermark waits for batches to travel with
    rest_ms: int = 250                             # before a follower that refused a shard is asked again; doubles

    def __post_init__(self) -> None:
        for name in (
            "window_bytes", "feed_window_bytes", "frame_bytes", "section_bytes", "catch_up_bytes_per_second", "news_ms",
            "rest_ms",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class CatchUpBudget:
    """A bucket of bytes that fills with time, shared by all links of a node; at most a quarter second's worth."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = float(bytes_per_second)
        self._most = self._rate / 4
        self._left = self._most
        self._at_s: float | None = None

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be read; whoever comes later waits behind."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._at_s is not None:
            self._left = min(self._left + (now_s - self._at_s) * self._rate, self._most)
        self._at_s = now_s
        self._left -= size
        if self._left < 0:
            await asyncio.sleep(-self._left / self._rate)

    def give_back(self, size: int) -> None:
        self._left += size


class FeedsLink(Protocol):
    """What the feeds need of the link: `peer_link.PeerLink`."""

    writing_paused: bool

    @property
    def writer(self) -> FrameWriter: ...
    def schedule(self) -> None:
        """Have `turn` called, and what it wrote sent, at the end of this loop turn."""

    def flush(self) -> None: ...


class PeerFeeds:
    """The feeds to one node. link: None while there is none; then nothing is queued or counted."""

    def __init__(self, node: str, config: FeedsConfig, budget: CatchUpBudget, tasks: Tasks) -> None:
        self.node = node
        self.feeds: dict[bytes, Feed] = {}
        self.flight_bytes = 0
        self.feed_window_bytes = config.feed_window_bytes
        self.rest_seconds = config.rest_ms / 1000
        self.link: FeedsLink | None = None
        self._config = config
        self._budget = budget
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Feed] = deque()
        self._news: OrderedDict[Feed, None] = OrderedDict()
        self._news_timer: asyncio.TimerHandle | None = None
        self._news_due = False
        self._behind: OrderedDict[Feed, None] = OrderedDict()
        self._catching_up: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._watched: dict[Feed, None] = {}       # asked or resting: looked at with each beat

    # -- feeds come and go -----------------------------------------------------------------------------------

    def open(self, leader: Leading) -> Feed:
        """A feed of that shard; one of an earlier leadership ends."""
        if (earlier := self.feeds.get(leader.uuid)) is not None:
            earlier.close()
        self.feeds[leader.uuid] = feed = Feed(leader, self.node, self)
        if self.link is not None:
            feed.restart()
        return feed

    def forget(self, feed: Feed) -> None:
        if self.feeds.get(feed.leader.uuid) is feed:
            del self.feeds[feed.leader.uuid]
        self._news.pop(feed, None)
        self._behind.pop(feed, None)
        self._watched.pop(feed, None)

    def link_up(self, link: FeedsLink) -> None:
        """Ask the follower of every shard where it is."""
        assert self.link is None, "one link at a time"
        self.link = link
        for feed in self.feeds.values():
            feed.restart()

    def link_down(self) -> None:
        self.link = None
        self.flight_bytes = 0
        self._ready.clear()
        self._news.clear()
        self._behind.clear()
        self._watched.clear()
        self._news_due = False
        if self._news_timer is not None:
            self._news_timer.cancel()
            self._news_timer = None
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None
        for feed in self.feeds.values():
            feed.suspend()

    # -- what feeds call -------------------------------------------------------------------------------------

    def now_s(self) -> float:
        return self._loop.time()

    def enqueue(self, feed: Feed) -> None:
        if self.link is not None:
            self._ready.append(feed)
            self.link.schedule()

    def gather_news(self, feed: Feed) -> None:
        self._news[feed] = None
        if self._news_timer is None and not self._news_due:
            self._news_timer = self._loop.call_later(self._config.news_ms / 1000, self._news_late)

    def _news_late(self) -> None:
        self._news_timer = None
        if self._news and self.link is not None:
            self._news_due = True
            self.link.schedule()

    def fall_behind(self, feed: Feed) -> None:
        self._behind[feed] = None
        if self._catching_up is None and self.link is not None:
            self._catching_up = self._tasks.start(self._catch_up(self.link), f"catch_up.{self.node}")

    def watch(self, feed: Feed) -> None:
        self._watched[feed] = None

    def unwatch(self, feed: Feed) -> None:
        self._watched.pop(feed, None)

    def release(self, size: int) -> None:
        """That many bytes were answered."""
        self.flight_bytes -= size
        self._wake_catch_up()
        if self._ready and self.link is not None:
            self.link.schedule()

    # -- what the link calls -----------------------------------------------------------------------------------

    def acknowledged(self, answer: Acknowledgement) -> None:
        feed = self.feeds.get(answer.shard)
        if feed is not None:
            feed.acknowledged(answer)

    def turn(self) -> None:
        """Write one frame of what is ready, as far as the window allows."""
        link = self.link
        assert link is not None, "turns belong to a link"
        room = min(self._config.window_bytes - self.flight_bytes, self._config.frame_bytes)
        ready = self._ready
        if not (self._news_due or (ready and room > 0)) or link.writing_paused:
            return
        writer, section_bytes = link.writer, self._config.section_bytes
        writer.begin_replicate()
        wrote = 0
        while ready and room > 0:
            feed = ready.popleft()
            if not feed.closed:
                feed.dequeued()
                size = feed.emit(writer, section_bytes if section_bytes < room else room)
                room -= size
                wrote += size
        if self._news_due or (wrote and self._news):
            self._emit_news(writer)
        writer.end_replicate()
        if ready and self.flight_bytes < self._config.window_bytes:
            link.schedule()

    def _emit_news(self, writer: FrameWriter) -> None:
        news = self._news
        if not self._news_due and len(news) > _NEWS_WITH_BATCHES_MAX:
            return
        room = self._config.frame_bytes
        while news and room > 0:
            feed, _ = news.popitem(last=False)
            room -= feed.emit_news(writer)
        self._news_due = bool(news)
        if self._news_due and self.link is not None:
            self.link.schedule()
        elif self._news_timer is not None:
            self._news_timer.cancel()
            self._news_timer = None

    def resume(self) -> None:
        """The peer takes bytes again."""
        self._wake_catch_up()
        if (self._ready or self._news_due) and self.link is not None:
            self.link.schedule()

    def tick(self, now_s: float) -> None:
        """With each beat: ask those again that rest, or whose probe got no answer."""
        if self._watched:
            for feed in list(self._watched):
                feed.look_again(now_s)

    # -- from disk -----------------------------------------------------------------------------------------------

    async def _catch_up(self, link: FeedsLink) -> None:
        """Read for the feeds that are behind, in turns, one piece in memory at a time."""
        try:
            while self._behind and self.link is link:
                feed, _ = self._behind.popitem(last=False)
                start = feed.behind()
                if start is None:
                    feed.ready()
                elif await self._catch_up_once(link, feed, start):
                    self._behind[feed] = None
        finally:
            if self.link is link:
                self._catching_up = None

    async def _catch_up_once(self, link: FeedsLink, feed: Feed, start: int) -> bool:
        """Whether the feed stays behind."""
        size = self._config.section_bytes
        while link.writing_paused or self.flight_bytes > self._config.window_bytes // 2:
            self._room = self._loop.create_future()    # the other half belongs to what is new
            await self._room
        await self._budget.take(size)
        if feed.behind() != start:
            self._budget.give_back(size)
            feed.ready()
            return False
        log = feed.leader.log
        try:
            batches = await log.read_cold(start, log.log_end, size)
        except (StreamkitError, OSError) as error:
            self._budget.give_back(size)
            if self.link is link:
                if feed.behind() == start:
                    feed.unreadable(error)
                else:
                    feed.ready()
            return False
        if self.link is not link:
            return False
        self._budget.give_back(size - sum(map(len, batches)))
        link.writer.begin_replicate()
        feed.emit_cold(link.writer, start, batches)
        link.writer.end_replicate()
        link.flush()
        if feed.behind() is not None:
            return True
        feed.ready()
        return False

    def _wake_catch_up(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
