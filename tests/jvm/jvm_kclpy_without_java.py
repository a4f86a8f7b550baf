"""amazon_kclpy's own samples, unmodified: as children of `streamkit kcl`, and inside a Worker. No Java runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import start_serve
from tests.examples.nodes import KCLPY, needed
from tests.waiting import until

IN_PROCESS = """
from samples.sample_kclpy_app import RecordProcessor
from streamkit import Worker
from streamkit.compat import kclpy_processor

Worker("orders", application="sample", start="trim_horizon", processor=kclpy_processor(RecordProcessor)).run()
"""
SECONDS = 60.0


@pytest.mark.parametrize("inside", [False, True], ids=["child", "in process"])
def test_the_sample_of_amazon_kclpy_runs_unmodified(tmp_path, inside):
    node = start_serve(tmp_path / "data")
    try:
        node.run("stream", "create", "orders", "--shards", "2")
        node.run("put", "orders", "--lines", "--codec", "text", stdin="".join(f"{n}\n" for n in range(100)))
        packages = next(Path(needed(KCLPY, "kclpy")).parents[1].glob("lib/python*/site-packages"))
        environment = dict(os.environ, STREAMKIT_URL=node.url)
        if inside:
            paths = [str(packages), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            command = [sys.executable, "-c", IN_PROCESS]
        else:
            sample = packages / "samples" / "sample_kclpy_app.py"
            command = [sys.executable, "-m", "streamkit.cli", "kcl", "--stream", "orders", "--app", "sample",
                       "--from", "trim_horizon", "--exec", f"{KCLPY} {sample}"]  # fmt: skip
        log = tmp_path / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(command, env=environment, stderr=errors)
        until(lambda: len(re.findall(r"Record \(Partition Key", log.read_text())) >= 60, SECONDS) # it never ends a line
        time.sleep(1.0)                    # and so the rest of them are not seen yet
        process.send_signal(signal.SIGINT)

        assert process.wait(30) == 0
        (described,) = node.json("app", "describe", "sample")
        assert sum(lease["lag_records"] for lease in described["leases"]) == 0, "its shutdown_requested checkpoints"
        assert log.read_text().count("Shutdown has been requested, checkpointing.") == 2
    finally:
        node.process.terminate()
        node.process.wait(30)
