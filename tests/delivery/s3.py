"""S3 servers for these tests: moto, which honours conditions, in a process of its own with a bound on its memory."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
from botocore.config import Config

from tests.end_to_end.processes import free_port
from tests.waiting import until

_MEMORY_BYTES = 3 << 30
CREDENTIALS = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}


class S3:
    """A server with a bucket called "lake"."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.settings = {**CREDENTIALS, "endpoint": self.endpoint, "virtual_hosted_style_request": False,
                         "client_options": {"allow_http": True}}  # fmt: skip
        self.boto = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="key",
            aws_secret_access_key="secret", config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )  # fmt: skip

    def bodies(self) -> dict[str, bytes]:
        """Every object of the bucket."""
        pages = self.boto.get_paginator("list_objects_v2").paginate(Bucket="lake")
        names = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {name: self.boto.get_object(Bucket="lake", Key=name)["Body"].read() for name in names}


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    port = free_port()
    with (folder / "s3.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES)),
        )  # fmt: skip
    try:
        served = S3(port)
        until(lambda: process.poll() is None and _answers(served), 60)
        yield served
    finally:
        process.kill()
        process.wait()


def _answers(served: S3) -> bool:
    try:
        served.boto.create_bucket(Bucket="lake")
    except Exception:
        return False
    return True
