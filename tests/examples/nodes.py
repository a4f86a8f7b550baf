"""A node with its HTTP faces, and the programs of examples/kinesis that are run against it, each a process.

    with KinesisNode(tmp_path) as node:
        python(node, "boto3_producer.py", "--records", "1000")      # what it printed; fails when it did not exit with 0
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.end_to_end.processes import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "kinesis"
# A tree of its own, as for the debug build, is tested with the clients of the tree that holds the virtual environment.
_TREES = [ROOT, Path(sys.prefix).parent]
BUILD = next((tree for tree in _TREES if (tree / "build" / "clients").exists()), ROOT) / "build"
CLIENTS = BUILD / "clients" / "bin"
NODE_MODULES = BUILD / "node" / "node_modules"
KCLPY = BUILD / "kclpy" / "bin" / "python"
JVM = BUILD / "jvm"

_KEY, _SECRET = "EXAMPLEKEY", "example/secret+key"
_READY_SECONDS = 30.0
_ADDRESS_KIB_MAX = 6 << 20
PATIENCE = 120.0


class MissingClient(Exception):
    """A client that a program here needs is not installed; the text says how it is had."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise MissingClient("there is no openssl: apt-get install openssl, as root")
    file, key = folder / "node.pem", folder / "node.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(file),
         "-subj", "/CN=node", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return file, key


class KinesisNode:
    """`streamkit serve` with http and https on free ports; it knows one access key, so every signature is verified.

    settings: environment variables without their STREAMKIT_.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.certificate, self._key = certificate(folder)
        self._settings = dict(settings or {})
        self._keys = folder / "keys.toml"
        self._keys.write_text(f'[[key]]\nid = "{_KEY}"\nsecret = "{_SECRET}"\n')
        self._ports = {name: free_port() for name in ("NATIVE", "HTTP", "HTTPS")}
        self.http = f"http://127.0.0.1:{self._ports['HTTP']}"
        self.https = f"https://127.0.0.1:{self._ports['HTTPS']}"
        self.log = folder / "node.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> KinesisNode:
        self.start()
        return self

    def start(self) -> None:
        """Until both listeners take connections; again after `end`, on the same ports and data."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMKIT_")}
        settings = {f"LISTEN__{name}__PORT": str(port) for name, port in self._ports.items()} | {
            "LISTEN__HTTPS__CERTIFICATE_FILE": str(self.certificate),
            "LISTEN__HTTPS__KEY_FILE": str(self._key),
            "LISTEN__HEALTH__ENABLED": "false",
            "KINESIS__KEYS_FILE": str(self._keys),
            "STORAGE__DATA_DIR": str(self.folder / "data"),
            "STORAGE__FREE_BYTES_MIN": "0",
            "LOGS__FORMAT": "text",
        }
        environment |= {f"STREAMKIT_{name}": value for name, value in (settings | self._settings).items()}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f'ulimit -v {_ADDRESS_KIB_MAX} && exec "$0" "$@"',
                 sys.executable, "-m", "streamkit.cli", "serve"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            for name in ("HTTP", "HTTPS"):
                self._wait_for(self._ports[name])
        except BaseException:
            self.end()
            raise

    def _wait_for(self, port: int) -> None:
        began = time.monotonic()
        while time.monotonic() - began < _READY_SECONDS:
            if self._process is not None and self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)               # between two tries of a port that nobody listens on yet
        raise AssertionError(f"the node is not ready\n{self.log.read_text()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def environment(node: KinesisNode, *, secure: bool = False) -> dict[str, str]:
    """What makes an unmodified client talk to the node, and to nothing else."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return ours | {
        "AWS_ENDPOINT_URL": node.https if secure else node.http,
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CA_BUNDLE": str(node.certificate),
        "AWS_PAGER": "",
        "NODE_EXTRA_CA_CERTS": str(node.certificate),
        "NODE_PATH": str(NODE_MODULES),
        "NODE_NO_WARNINGS": "1",
    }


def needed(path: Path, part: str) -> str:
    """The path as text. Raises MissingClient with the command that puts it there."""
    if not path.exists():
        raise MissingClient(f"{path.relative_to(BUILD.parent)} is missing: sh .ci/clients {part}")
    return str(path)


def run(arguments: list[str], environment: Mapping[str, str], *, seconds: float = PATIENCE) -> str:
    """What it printed; an AssertionError with all of it when it does not end with 0."""
    done = subprocess.run(
        arguments, env=environment, cwd=EXAMPLES, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(arguments)[:400]}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def python(node: KinesisNode, program: str, *arguments: str, secure: bool = False) -> str:
    """One of the programs that use boto3."""
    return run([needed(CLIENTS / "python", "python"), program, *arguments], environment(node, secure=secure))


def aws(node: KinesisNode, *arguments: str) -> str:
    """The AWS CLI; its output as text."""
    return run([needed(CLIENTS / "aws", "python"), "--output", "text", *arguments], environment(node)).strip()


def javascript(node: KinesisNode, program: str, *arguments: str, secure: bool = False) -> str:
    node_js = shutil.which("node")
    if node_js is None:
        raise MissingClient("node is missing: apt-get install nodejs npm, as root")
    needed(NODE_MODULES / "@aws-sdk" / "client-kinesis", "javascript")
    return run([node_js, program, *arguments], environment(node, secure=secure))


def open_shards(node: KinesisNode, stream: str) -> list[str]:
    """In order of their hash keys."""
    shards = aws(node, "kinesis", "list-shards", "--stream-name", stream, "--shard-filter", "Type=AT_LATEST",
                 "--query", "Shards[].[HashKeyRange.StartingHashKey,ShardId]").split()  # fmt: skip
    return [shard for _, shard in sorted(zip(map(int, shards[::2]), shards[1::2], strict=True))]


def split(node: KinesisNode, stream: str) -> None:
    """The first open shard, in the middle."""
    shard = open_shards(node, stream)[0]
    first, last = aws(node, "kinesis", "list-shards", "--stream-name", stream, "--query",
                      f"Shards[?ShardId=='{shard}'].HashKeyRange.[StartingHashKey,EndingHashKey]").split()  # fmt: skip
    middle = str((int(first) + int(last)) // 2)
    aws(node, "kinesis", "split-shard", "--stream-name", stream, "--shard-to-split", shard,
        "--new-starting-hash-key", middle)  # fmt: skip
    wait_active(node, stream)


def merge(node: KinesisNode, stream: str) -> None:
    """The two open shards with the highest keys."""
    lower, upper = open_shards(node, stream)[-2:]
    aws(node, "kinesis", "merge-shards", "--stream-name", stream, "--shard-to-merge", lower,
        "--adjacent-shard-to-merge", upper)  # fmt: skip
    wait_active(node, stream)


def wait_active(node: KinesisNode, stream: str) -> None:
    summary = ("kinesis", "describe-stream-summary", "--stream-name", stream, "--query",
               "StreamDescriptionSummary.StreamStatus")  # fmt: skip
    deadline = time.monotonic() + 30
    while aws(node, *summary) != "ACTIVE":
        assert time.monotonic() < deadline, f"the stream {stream} does not become active"


def number(pattern: str, output: str) -> int:
    """The one group of the pattern, which the output must have."""
    found = re.search(pattern, output)
    assert found, f"{pattern!r} is not in\n{output}"
    return int(found[1])
