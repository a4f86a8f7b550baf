"""Which library runs against which servers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.libraries.kafka import AiokafkaLibrary, ConfluentLibrary
from benchmarks.libraries.kinesis import AsyncKinesisLibrary
from benchmarks.libraries.library import Library
from benchmarks.libraries.nats import NatsLibrary
from benchmarks.libraries.own import StreamkitLibrary
from benchmarks.peers.packages import missing_python, run
from benchmarks.peers.servers import Servers
from benchmarks.peers.system import System, Variant
from benchmarks.peers.systems.kafka import Kafka
from benchmarks.peers.systems.nats import Nats
from benchmarks.peers.systems.streamkit import Streamkit, announcements

OWN = "streamkit"


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    distribution: str                  # of the library, at the Python package index
    library: type[Library]
    system: System
    variant: Variant

    def absent(self) -> str:
        if not self.library.python.exists():
            return "its environment is not in build/peers: make bench-libraries-install"
        wanted = self.name != OWN and self.library.python == Library.python
        return self.system.absent() or (missing_python(self.distribution) if wanted else "")

    def version(self) -> str:
        asked = f"from importlib.metadata import version; print(version({self.distribution!r}))"
        return "" if self.name == OWN else run(self.library.python, "-c", asked).strip()


class KinesisFace(Streamkit):
    """The same cluster, spoken to over HTTP."""

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = super().start(variant, directory)
        servers.facts["http"] = announcements(servers.log())[-1]["nodes"][0]["http"]
        return servers


def _entry(name: str, distribution: str, library: type[Library], system: System, variant: str) -> Entry:
    found = next(one for one in system.variants if one.key == variant)
    return Entry(name, distribution, library, system, found)


ENTRIES = (
    _entry(OWN, "streamkit", StreamkitLibrary, Streamkit(), "streamkit-3-fsync"),
    _entry("confluent-kafka", "confluent-kafka", ConfluentLibrary, Kafka(), "kafka-3"),
    _entry("confluent-kafka, synced", "confluent-kafka", ConfluentLibrary, Kafka(), "kafka-3-sync"),
    _entry("aiokafka", "aiokafka", AiokafkaLibrary, Kafka(), "kafka-3"),
    _entry("nats-py", "nats-py", NatsLibrary, Nats(), "nats-3"),
    _entry("async-kinesis", "async-kinesis", AsyncKinesisLibrary, KinesisFace(), "streamkit-3-fsync"),
)


def install() -> None:
    """What the loading processes need beyond `make bench-peers-install`."""
    environment = AsyncKinesisLibrary.python.parent.parent
    if not AsyncKinesisLibrary.python.exists():
        run(sys.executable, "-m", "venv", environment)
    run(AsyncKinesisLibrary.python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "async-kinesis>=3.0",
        "msgspec", "uvloop")  # fmt: skip
    run(Library.python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "aiokafka>=0.14")
