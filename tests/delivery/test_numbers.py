"""What a delivery tells Prometheus: every family is there, its figures are those that were counted."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from streamkit.delivery.progress import Trouble
from tests.consumer.bottle import Bottle
from tests.delivery.test_deliveries import Store, delivery


def test_every_family_is_there_and_counts_what_happened():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        store = Store()
        store.refused = lambda value: value == 3
        made = delivery(store.sink(), dead_letter="dead")
        made.transform(lambda value: None if value == 4 else value)
        bottle.start("w1", made)
        await bottle.put("s", list(range(10)))
        await bottle.until_done("app")
        made.progress.trouble["shardId-000000000000"] = Trouble("sink_misused", "no bucket", 0)
        made.progress.oldest_ms["shardId-000000000000"] = made.clock.now_ms() - 90_000
        made.memory.held = 77
        found = {family.name.removeprefix("streamkit_delivery_"): family.samples
                 for family in text_string_to_metric_families(made.prometheus().decode())}  # fmt: skip

        assert found["records"][0].value == 10 and found["bytes"][0].value == 10
        assert found["dropped"][0].value == 1 and found["repeated"][0].value == 0
        assert found["chunks"][0].value == len(store.chunks) and found["written_bytes"][0].value == 0
        assert [(s.labels["reason"], s.value) for s in found["dead_lettered"]] == [("no", 1)]
        assert [(s.labels["code"], s.value) for s in found["waiting_shards"]] == [("sink_misused", 1)]
        assert found["lag_seconds"][0].value == 90 and found["buffer_bytes"][0].value == 77
        counts = {s.name: s.value for s in found["write_seconds"] if not s.name.endswith("_bucket")}
        assert counts["streamkit_delivery_write_seconds_count"] == len(store.chunks)
        assert all(s.labels["delivery"] == "app" for samples in found.values() for s in samples)
        await asyncio.sleep(0)

    Bottle.play(story)
