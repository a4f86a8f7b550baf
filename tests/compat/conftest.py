"""A node in this process, for processors that wait for their checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamkit.session
from streamkit.consumer.worker import Worker
from streamkit.protocol.messages import ApplicationDescribed, DescribeApplication
from streamkit.runtime.real import LoopThread
from streamkit.session import Session

SECONDS = 20.0


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with streamkit.session.open(str(tmp_path / "data"), {"streams.auto_create": False}) as opened:
        opened.client.create_stream("s", shards=1, durability="os")
        yield opened


def put(session: Session, count: int, first: int = 0) -> None:
    with session.producer("s", codec="bytes") as producer:
        for number in range(first, first + count):
            producer.put(b"%d" % number, key=f"k{number % 5}")


def worker(session: Session, processor: Callable[[], Any], **options: Any) -> Worker:
    settings: dict[str, Any] = {"application": "app", "start": "trim_horizon", "drain_seconds": 5} | options
    return Worker("s", processor=processor, url=session._where, **settings)


def described(session: Session) -> ApplicationDescribed:
    async def ask() -> ApplicationDescribed:
        from streamkit.client.client import AsyncClient

        async with AsyncClient(session._where) as client:
            answer = await client.call(DescribeApplication("app"))
        assert isinstance(answer, ApplicationDescribed)
        return answer

    return LoopThread.shared().run(ask(), SECONDS)
