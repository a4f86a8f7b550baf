"""docs/delivery.md works as written: its programs run on a node and a real S3 server, until Ctrl-C if they go on."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from streamkit.client.sync import Client
from streamkit.consumer.reader import Reader
from streamkit.producer.producer import Producer
from tests.delivery.s3 import S3, s3_server
from tests.end_to_end.processes import broker
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "delivery.md").read_text(), re.MULTILINE | re.DOTALL)
ORDERS = [{"id": number, "country": ("DE", "SE")[number % 2], "total": number % 5} for number in range(60)]


def lake(s3: S3) -> dict[str, list[int]]:
    """Ids by country, as the lake has them."""
    found: dict[str, list[int]] = {}
    for name, body in s3.bodies().items():
        assert name.startswith("orders/2") and name.endswith(".parquet")
        country = name.split("/")[4]
        found.setdefault(country, []).extend(pq.read_table(io.BytesIO(body))["id"].to_pylist())
    return {country: sorted(ids) for country, ids in found.items()}


def test_the_programs_of_the_page_do_what_it_says(tmp_path):
    to_lake, again, own = PROGRAMS
    with broker(tmp_path / "data") as served, s3_server(tmp_path) as s3:
        environment = {
            **os.environ, "STREAMKIT_URL": served.url, "AWS_ENDPOINT_URL": s3.endpoint, "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip

        def start(text: str, log: str) -> subprocess.Popen[bytes]:
            program = tmp_path / f"{log}.py"
            program.write_text(text)
            with (tmp_path / log).open("wb") as output:
                return subprocess.Popen([sys.executable, str(program)], cwd=tmp_path, env=environment, stdout=output,
                                        stderr=output)  # fmt: skip

        def said(log: str) -> str:
            return (tmp_path / log).read_text()

        with Client(served.url) as client:
            client.create_stream("orders", shards=2)
            client.create_stream("orders-undelivered")
        with Producer("orders", url=served.url) as producer:
            for order in ORDERS:
                producer.put(order, key=str(order["id"]))
            producer.put({"id": "no number", "country": "DE", "total": 1}, key="x")
        ids = [order["id"] for order in ORDERS if order["total"] > 0 and order["id"]]
        expected = {f"country={name}": [i for i in ids if i % 2 == at] for at, name in enumerate(("DE", "SE"))}

        process = start(to_lake, "lake")
        try:
            until(lambda: process.poll() is not None or lake(s3) == expected, 30)
            dead = Reader("orders-undelivered", start="trim_horizon", until="latest", url=served.url)
            until(lambda: process.poll() is not None or len(list(dead)) == 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, said("lake")
            assert lake(s3) == expected, said("lake")

            process = start(again, "again")
            assert process.wait(30) == 0, said("again")
            assert "orders-to-files-1-" in said("again") and "61 records written once more" in said("again")
            written = [path.read_bytes() for path in (tmp_path / "delivered").rglob("orders-to-files-replay-*")]
            assert sum(body.count(b"\n") for body in written if body.endswith(b"\n")) == 61

            process = start(own, "own")
            until(lambda: process.poll() is not None or said("own").count("'country'") == 61)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0 and said("own").rstrip().endswith("closed"), said("own")
        finally:
            process.kill()
            process.wait()
