"""Each cause of a lag is named, with its evidence and one command: as a rule, and caused on a real node."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamkit
from streamkit import Context, RetryPolicy
from streamkit.client.why import Facts, explain
from streamkit.errors import ApplicationNotFound
from streamkit.protocol.messages import ApplicationDescribed, LeaseState, ShardPace, WorkerReport
from tests.end_to_end.processes import Broker, broker

LEASE = LeaseState(
    stream="s", ordinal=0, state="owned", owner="w1", lease_epoch=1, checkpoint=10, high_watermark=110,
    lag_records=100, lag_ms=60_000, checkpoint_age_ms=9_000, takeovers_without_progress=0, poisoned=0,
)  # fmt: skip
PACE = ShardPace(shard=b"a", busy=0.1, waiting=0.1, record_ms=2.0, stream="s", ordinal=0)
REPORT = WorkerReport(wall_ms=0, prefetch_bytes=1 << 20, prefetch_bytes_max=64 << 20, shards=(PACE,), worker="w1")


def changed(of: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(of, **fields)


def causes(
    *leases: LeaseState, workers: tuple[str, ...] = ("w1",), reports: tuple[WorkerReport, ...] = (REPORT,),
    put_ms: float = 0.0,
) -> list[str]:  # fmt: skip
    described = ApplicationDescribed("app", workers, leases or (LEASE,), (), reports)
    return [finding.cause for finding in explain(Facts(described, put_ms))]


def test_nothing_is_made_up() -> None:
    assert causes() == []
    assert causes(changed(LEASE, state="complete", owner="", lag_records=0), workers=()) == []


def test_every_cause_has_its_facts() -> None:
    idle = changed(LEASE, state="ready", owner="")
    full = changed(REPORT, prefetch_bytes=64 << 20, shards=(changed(PACE, waiting=0.9),))

    assert causes(idle, workers=()) == ["no_workers"]
    assert causes(LEASE, changed(idle, ordinal=1)) == ["lease_without_owner"]
    assert causes(changed(LEASE, state="paused", reason="why not")) == ["paused"]
    assert causes(changed(LEASE, poisoned=1)) == ["retrying"]
    assert causes(reports=(changed(REPORT, shards=(changed(PACE, throttled=3),)),)) == ["throttled"]
    assert causes(reports=(changed(REPORT, shards=(changed(PACE, busy=0.99),)),)) == ["slow_handler"]
    assert causes(reports=(full,)) == ["prefetch_starved"]
    assert causes(put_ms=250.0) == ["slow_disk"]
    assert causes(reports=(changed(REPORT, clock_ms=-5_000),)) == ["clock"]


def test_without_a_lag_nobody_is_slow() -> None:
    done = changed(LEASE, lag_records=0, lag_ms=0)

    assert causes(done, reports=(changed(REPORT, shards=(changed(PACE, busy=0.99),)),), put_ms=250.0) == []


def test_findings_come_in_the_order_of_the_search() -> None:
    report = changed(REPORT, clock_ms=9_000, prefetch_bytes=64 << 20, shards=(
        changed(PACE, busy=0.9, throttled=1), changed(PACE, ordinal=1, waiting=0.8),
    ))  # fmt: skip
    leases = (
        changed(LEASE, poisoned=1), changed(LEASE, ordinal=1), changed(LEASE, ordinal=2, state="paused"),
        changed(LEASE, ordinal=3, state="ready", owner=""),
    )  # fmt: skip

    assert causes(*leases, reports=(report,), put_ms=500.0) == [
        "lease_without_owner", "paused", "retrying", "throttled", "slow_handler", "prefetch_starved", "slow_disk",
        "clock",
    ]  # fmt: skip


def test_a_slow_handler_names_the_shard_and_the_key_that_stand_out() -> None:
    slow = changed(PACE, busy=0.97, record_ms=182.0, top_key="customer-7", top_key_share=0.71)
    report = changed(REPORT, shards=(slow, changed(PACE, ordinal=1, record_ms=9.0)))
    described = ApplicationDescribed(
        "search", ("w1",), (changed(LEASE, lag_records=960), changed(LEASE, ordinal=1, lag_records=40)), (), (report,)
    )
    (finding,) = explain(Facts(described))

    assert "s/shardId-000000000000" in finding.text
    assert any("182 ms a record (other shards: 9 ms)" in line for line in finding.evidence)
    assert any("96%" in line for line in finding.evidence)
    assert any("71%" in line and "customer-7" in line for line in finding.evidence)
    assert finding.try_ == "streamkit tail s --shard shardId-000000000000 --key customer-7 -n 5"


# ---- on a real node ------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path / "data") as node:
        with streamkit.Client(node.url) as client:
            client.create_stream("s", shards=2, durability="os")
        yield node


def said(served: Broker) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "streamkit.cli", "why", "app", "--json", "--url", served.url], capture_output=True,
        text=True, timeout=30, check=False,
    )  # fmt: skip
    return {finding["cause"]: finding for finding in map(json.loads, done.stdout.splitlines()) if "cause" in finding}


def until_said(served: Broker, cause: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while cause not in (found := said(served)):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)                    # between two looks
    return found[cause]


def running(served: Broker, handler: Callable[..., Any], **options: Any) -> streamkit.Consumer:
    consumer = streamkit.Consumer("s", application="app", start="trim_horizon", url=served.url, membership_ms=1_000,
                                  **options)  # fmt: skip
    consumer.handler(handler)
    with streamkit.Producer("s", url=served.url) as producer:
        producer.put_many([streamkit.PutEntry(n, key="big" if n % 4 else f"k{n}") for n in range(400)])
    return consumer


def test_no_workers_and_a_lease_that_nobody_may_take(served: Broker) -> None:
    consumer = running(served, lambda value: None, leases_max=1)
    with consumer:
        finding = until_said(served, "lease_without_owner")
        assert finding["try"] == "start another worker, or raise leases_max"

    assert "no worker is running" in until_said(served, "no_workers")["text"]


def test_a_paused_lease_and_a_record_that_never_works(served: Broker) -> None:
    def pausing(value: int, ctx: Context) -> None:
        ctx.pause("the shop is closed")

    with running(served, pausing):
        finding = until_said(served, "paused")
    assert finding["evidence"] == ["reason: the shop is closed"] and finding["try"] == "streamkit app resume app"


def test_a_record_that_is_tried_again_and_again(served: Broker) -> None:
    def failing(value: int) -> None:
        raise ValueError("never")

    with running(served, failing, retry=RetryPolicy(attempts_max=2, first_ms=10, last_ms=200)):
        assert "again and again" in until_said(served, "retrying")["text"]


def test_a_handler_that_is_slower_than_its_input(served: Broker) -> None:
    stop = threading.Event()

    def slow(value: int) -> None:
        stop.wait(0.05)

    with running(served, slow):
        finding = until_said(served, "slow_handler")
        stop.set()

    assert any("big" in line for line in finding["evidence"])
    assert "--key big" in finding["try"]


def test_an_application_that_nobody_knows(served: Broker) -> None:
    with streamkit.Client(served.url) as client, pytest.raises(ApplicationNotFound):
        client.lag("app")
