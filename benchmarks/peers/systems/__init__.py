"""One file a system; this is the list of them, in the order in which they are run and shown."""

from __future__ import annotations

from benchmarks.peers.system import System, Variant
from benchmarks.peers.systems.kafka import Kafka
from benchmarks.peers.systems.kinesis_emulators import Kinesalite, KinesisLocal, Moto
from benchmarks.peers.systems.nats import Nats
from benchmarks.peers.systems.rabbitmq import RabbitMQ
from benchmarks.peers.systems.redis import Redis, Valkey
from benchmarks.peers.systems.streamkit import Streamkit

SYSTEMS: tuple[System, ...] = (
    Streamkit(), Nats(), Kafka(), RabbitMQ(), Redis(), Valkey(), Kinesalite(), KinesisLocal(), Moto(),
)  # fmt: skip


def variant_of(key: str) -> Variant:
    return next(variant for system in SYSTEMS for variant in system.variants if variant.key == key)


def system_of(key: str) -> System:
    return next(system for system in SYSTEMS if any(variant.key == key for variant in system.variants))
