"""Kafka without ZooKeeper: one node, or three, each broker and controller; acknowledged by all in-sync copies."""

from __future__ import annotations

import asyncio
import base64
import shutil
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import missing_program, missing_python, python_version, run
from benchmarks.peers.servers import Servers, answers, free_ports
from benchmarks.peers.system import DISK, PAGE_CACHE, PEERS, Acknowledged, Client, System, Variant

VERSION = "4.4.0"
FOLDER = PEERS / "kafka"
HEAP = ("-Xms512m", "-Xmx1g")
# As Kafka's own start script sets them.
FLAGS = ("-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35")
CONSUME_RECORDS = 10_000

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>bench</groupId><artifactId>kafka-server</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""
PROPERTIES = """
process.roles=broker,controller
node.id={index}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={directory}
num.partitions=1
default.replication.factor={copies}
min.insync.replicas={majority}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={majority}
auto.create.topics.enable=false
"""


class KafkaClient(Client):
    """confluent-kafka (librdkafka), idempotent, acks=all."""

    async def open(self) -> None:
        from confluent_kafka import Consumer, Producer
        from confluent_kafka.admin import AdminClient

        common: dict[str, Any] = {
            "bootstrap.servers": self.facts["servers"], "enable.idempotence": True, "acks": "all",
            "compression.type": "none",
        }  # fmt: skip
        self._errors: list[str] = []
        self._admin = AdminClient({"bootstrap.servers": self.facts["servers"]})
        self._batching = Producer(
            {**common, "linger.ms": 5, "batch.size": 1_000_000, "queue.buffering.max.messages": 100_000}
        )
        self._singly = Producer(
            {**common, "linger.ms": 0, "batch.num.messages": 1, "queue.buffering.max.messages": 1_000}
        )
        self._prompt = Producer({**common, "linger.ms": 0})
        self._consumer = Consumer(
            {
                "bootstrap.servers": self.facts["servers"], "group.id": "reader", "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                # It would stop fetching for a second whenever it has 100,000 records.
                "queued.min.messages": 1_000_000, "fetch.queue.backoff.ms": 10,
            }
        )  # fmt: skip

    async def create(self, log: str) -> None:
        from confluent_kafka.admin import NewTopic

        settings = {"flush.messages": "1"} if self.facts["sync"] else {}
        topic = NewTopic(log, num_partitions=1, replication_factor=self.facts["copies"], config=settings)
        await asyncio.to_thread(self._admin.create_topics([topic])[log].result, 30)
        while True:                    # until every broker knows who leads it
            found = self._admin.list_topics(log, timeout=10).topics[log].partitions
            if found and found[0].leader >= 0 and len(found[0].isrs) == self.facts["copies"]:
                return
            await asyncio.sleep(0.1)

    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        self._put(self._batching, log, values)

    async def single(self, log: str, values: Sequence[bytes]) -> None:
        self._put(self._singly, log, values)

    def _put(self, producer: Any, log: str, values: Sequence[bytes]) -> None:
        put = producer.produce
        for value in values:
            while True:
                try:
                    put(log, value, on_delivery=self._delivered)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._errors.append(str(error))

    async def flush(self) -> None:
        for producer in (self._batching, self._singly, self._prompt):
            if left := producer.flush(60):
                raise RuntimeError(f"{left} records were not delivered")
        if self._errors:
            raise RuntimeError(f"{len(self._errors)} records failed: {self._errors[0]}")

    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        def delivered(error: Any, message: Any) -> None:
            acknowledged(None if error is None else RuntimeError(str(error)))

        self._prompt.produce(log, value, on_delivery=delivered)
        self._prompt.poll(0)

    async def pause(self, seconds: float) -> None:
        """Serves delivery reports until the next record is due; returns early after one."""
        self._prompt.poll(seconds)

    async def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        from confluent_kafka import TopicPartition

        self._consumer.assign([TopicPartition(log, 0, 0)])
        while True:
            messages = self._consumer.consume(CONSUME_RECORDS, 0.1)
            yield [message.value() for message in messages if message.error() is None]

    async def close(self) -> None:
        self._consumer.close()


class Kafka(System):
    client_class = KafkaClient
    setup = (
        "The server's jars from Maven Central, KRaft, each node broker and controller, heap of 1 GiB as Kafka's own "
        "start script sets. One topic with one partition, `min.insync.replicas` a majority, `acks=all`, idempotent. "
        "Kafka acknowledges from the page cache unless `flush.messages=1`, which is what *disk* means here. "
        "confluent-kafka (librdkafka): `linger.ms=5` and batches up to 1 MB, and for one record a request "
        "`batch.num.messages=1` with the five requests under way that idempotence allows; for latency "
        "`linger.ms=0`, where records that are due while others are on their way share a request."
    )
    variants = (
        Variant("kafka-1", "Kafka", 1, PAGE_CACHE, "acks=all"),
        Variant("kafka-3", "Kafka", 3, PAGE_CACHE, "acks=all"),
        Variant("kafka-3-sync", "Kafka", 3, DISK, "acks=all, flush.messages=1"),
    )

    def absent(self) -> str:
        if not (FOLDER / "jars" / f"kafka_2.13-{VERSION}.jar").exists():
            return missing_program("mvn") or f"Kafka {VERSION} is not in build/peers: make bench-peers-install"
        return missing_program("java") or missing_python("confluent-kafka")

    def install(self) -> None:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        (FOLDER / "pom.xml").write_text(POM)
        run("mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime",
            directory=FOLDER)  # fmt: skip

    def version(self) -> str:
        import confluent_kafka

        client = f"confluent-kafka {python_version('confluent-kafka')} on librdkafka {confluent_kafka.libversion()[0]}"
        return f"{VERSION}, {client}"

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        ports, controllers = free_ports(variant.copies), free_ports(variant.copies)
        voters = ",".join(f"{i + 1}@127.0.0.1:{port}" for i, port in enumerate(controllers))
        # Kafka's form of a UUID; the first byte keeps the tool from taking one that begins with a dash for an option.
        cluster = base64.urlsafe_b64encode(b"k" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        java = ["java", "-cp", f"{FOLDER / 'jars'}/*", f"-Dkafka.logs.dir={directory}"]
        for i in range(variant.copies):
            path = directory / f"node{i}.properties"
            path.write_text(
                PROPERTIES.format(
                    index=i + 1, voters=voters, port=ports[i], controller_port=controllers[i],
                    directory=directory / f"data-{i}", copies=variant.copies, majority=variant.copies // 2 + 1,
                )
            )  # fmt: skip
            run(*java, "-Xmx256m", "kafka.tools.StorageTool", "format", "-t", cluster, "-c", path)
            servers.run([*java, *HEAP, *FLAGS, "kafka.Kafka", path], bounded=False)
        # Nothing is logged, for want of a logging library; the port opens when a broker is no longer fenced.
        servers.wait(lambda: all(answers(port) for port in ports))
        servers.facts = {
            "servers": ",".join(f"127.0.0.1:{port}" for port in ports), "copies": variant.copies,
            "sync": variant.durability == DISK,
        }  # fmt: skip
        return servers

