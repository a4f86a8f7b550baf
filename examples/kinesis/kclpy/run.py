"""Run the MultiLangDaemon of amazon_kclpy with the record processor in count_records.py.

    pip install amazon_kclpy && python run.py --stream example --records 1000

pip fetches the daemon's libraries too; what is needed beside them is Java. Ends when so many records were counted:
exits 1 when they were not after `--seconds`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import amazon_kclpy

HERE = Path(__file__).resolve().parent
HEAP = "-Xmx256m"


def counted(file: Path) -> tuple[int, set[str]]:
    """How many different records are noted in the file, and in which shards."""
    if not file.exists():
        return 0, set()
    rows = [line.rstrip("\n").split("\t", 3) for line in file.read_text().splitlines()]
    return len({tuple(row[:3]) for row in rows if len(row) == 4}), {row[0] for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stream", default="example")
    parser.add_argument("--application", default="count-records-python")
    parser.add_argument("--records", type=int, default=1_000, help="how many to wait for (default: 1000)")
    parser.add_argument("--seconds", type=float, default=120.0, help="give up after this long (default: 120)")
    parser.add_argument("--fan-out", action="store_true", help="records are pushed instead of polled for")
    parser.add_argument("--output", type=Path, help="note the records there (default: a file that is removed)")
    parser.add_argument("--endpoint", default=os.environ.get("AWS_ENDPOINT_URL", "http://127.0.0.1:7441"))
    parser.add_argument("--java", default=shutil.which("java"))
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        properties = Path(folder, "daemon.properties")
        properties.write_text((HERE / "daemon.properties").read_text().format(
            stream=arguments.stream, application=arguments.application, worker=f"python-{os.getpid()}",
            python=sys.executable, processor=HERE / "count_records.py",
            retrieval="FANOUT" if arguments.fan_out else "POLLING",
            region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"), endpoint=arguments.endpoint,
        ))  # fmt: skip
        output = (arguments.output or Path(folder, "records")).absolute()
        environment = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"} | os.environ
        environment["COUNT_FILE"] = str(output)
        libraries = Path(amazon_kclpy.__file__).parent / "jars" / "*"
        daemon = subprocess.Popen(
            [arguments.java, HEAP, "-cp", f"{libraries}:{folder}", "software.amazon.kinesis.multilang.MultiLangDaemon",
             "--properties-file", str(properties)],
            env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr,
        )  # fmt: skip
        deadline = time.monotonic() + arguments.seconds
        try:
            while counted(output)[0] < arguments.records and time.monotonic() < deadline and daemon.poll() is None:
                time.sleep(0.2)            # the daemon tells nobody how far it is but its file
        finally:
            daemon.terminate()                     # it hands its shards over and checkpoints
            try:
                daemon.wait(40)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        records, shards = counted(output)
    print(f"{records} of {arguments.records} records counted from {len(shards)} shards")
    return 0 if records >= arguments.records else 1


if __name__ == "__main__":
    sys.exit(main())
