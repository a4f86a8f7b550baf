"""What a program and a command say about lag: right with no worker, and in words that follow from the numbers."""

from __future__ import annotations

import dataclasses
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamkit
from streamkit.client.lag import lag_of
from streamkit.client.sync import Client
from streamkit.errors import ApplicationNotFound
from streamkit.protocol.messages import ApplicationDescribed, LeaseState, StreamTrend
from tests.end_to_end.processes import broker, free_port
from tests.waiting import until

LEASE = LeaseState(
    stream="s", ordinal=0, state="owned", owner="w1", lease_epoch=1, checkpoint=10, high_watermark=30, lag_records=20,
    lag_ms=60_000, checkpoint_age_ms=5, takeovers_without_progress=0, poisoned=0, lag_bytes=2_000,
    time_to_trim_ms=1_000, records_lost=3,
)  # fmt: skip


def described(*leases: LeaseState, put: float = 0.0, finished: float = 0.0) -> ApplicationDescribed:
    return ApplicationDescribed("app", ("w1",), leases, (StreamTrend("s", (1, 2), put, finished),))


def changed(**fields: Any) -> LeaseState:
    return msgspec.structs.replace(LEASE, **fields)


@pytest.mark.parametrize(
    ("leases", "put", "finished", "state"),
    [
        ((LEASE,), 100.0, 50.0, "falling behind"),
        ((LEASE,), 100.0, 150.0, "catching up"),
        ((LEASE,), 100.0, 99.0, "steady"),
        ((changed(lag_ms=900),), 100.0, 50.0, "ok"),
        ((changed(owner="", state="ready"),), 0.0, 0.0, "no workers"),
        ((changed(owner="", state="complete"),), 0.0, 0.0, "steady"),
        ((changed(state="paused"), changed(ordinal=1, owner="")), 0.0, 0.0, "1 paused"),
        ((changed(poisoned=1),), 0.0, 0.0, "retrying 1 record"),
        ((changed(poisoned=2),), 0.0, 0.0, "retrying 2 records"),
    ],
)  # fmt: skip
def test_the_state_of_a_stream_in_words(
    leases: tuple[LeaseState, ...], put: float, finished: float, state: str
) -> None:
    assert lag_of(described(*leases, put=put, finished=finished)).streams[0].state == state


def test_shards_are_added_up_and_the_furthest_behind_and_the_soonest_trimmed_count() -> None:
    lag = lag_of(described(LEASE, changed(ordinal=1, lag_ms=90_000, time_to_trim_ms=-1, records_lost=0)))

    assert (lag.records, lag.bytes, lag.seconds, lag.time_to_trim_ms, lag.records_lost) == (40, 4_000, 90.0, 1_000, 3)
    assert [shard.time_to_trim_ms for shard in lag.shards] == [1_000, None]
    assert dataclasses.replace(lag.streams[0], trend_ms=()).records == 40


def test_lag_is_right_within_five_seconds_with_no_worker(tmp_path: Path) -> None:
    """Acceptance: consumer 14, seconds, records, bytes, time to trim of every application; metrics."""
    health = free_port()
    with broker(tmp_path / "data", health_port=health) as served, Client(served.url) as client:
        client.create_stream("s", shards=2, retention_hours=24)
        with streamkit.Producer("s", url=served.url) as producer:      # each shard begins with a mark
            producer.put_many([streamkit.PutEntry({"n": n}, key=f"k{n}") for n in range(20)])
        for name in ("billing", "audit"):
            consumer = streamkit.Consumer("s", application=name, start="trim_horizon", url=served.url)
            consumer.handler(lambda value: None)
            with consumer:
                until(lambda: len(consumer.shards) == 2 and not client.lag(name).records)     # noqa: B023 - used at once
        put_at = time.time()
        with streamkit.Producer("s", url=served.url) as producer:
            producer.put_many([streamkit.PutEntry({"n": n}, key=f"k{n}") for n in range(300)])
        time.sleep(1.0)                    # they grow old: that is what is measured below

        assert set(client.list_applications()) == {"audit", "billing"}
        for name in ("billing", "audit"):
            lag = client.lag(name)
            age = time.time() - put_at
            assert lag.records == 300 and lag.workers == ()
            assert 0.9 < lag.seconds <= age + 0.1
            stored = sum(state.stored_bytes for state in client.describe_shards("s"))
            assert 0.8 * stored < lag.bytes <= stored
            assert lag.time_to_trim_ms is not None
            assert 24 * 3_600 - age - 5 < lag.time_to_trim_ms / 1000 <= 24 * 3_600 - lag.seconds + 0.01
            assert lag.streams[0].state == "no workers" and lag.records_lost == 0
        with pytest.raises(ApplicationNotFound):
            client.lag("nobody")
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/metrics", timeout=5) as answer:
            text = answer.read().decode()

    series = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("streamkit_application"))
    records = [float(value) for key, value in series.items()
               if key.startswith("streamkit_application_lag_records{application=\"billing\"")]  # fmt: skip
    assert sum(records) == 300 and len(records) == 2
    assert series['streamkit_application_unowned_leases{application="audit",stream="s"}'] == "2.0"
    assert series['streamkit_application_workers{application="audit"}'] == "0.0"
    assert any(key.startswith("streamkit_application_time_to_trim_seconds{") for key in series)
