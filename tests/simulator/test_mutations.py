"""Rules broken on purpose: the simulator must notice each within a bounded number of seeds.

Every mutation replaces one rule of the product, by monkeypatching, and says which promise falls with it. A world that
is hostile in the right way is given, so that few seeds do.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

from streamkit.broker.coordinator import Coordinator
from streamkit.broker.fetch import Fetches
from streamkit.consumer.lane import Lane
from streamkit.consumer.lease_keeper import LeaseKeeper
from streamkit.producer.outbox import Outbox
from streamkit.producer.sender import NOBODY
from streamkit.protocol import messages as m
from streamkit.replication.leader import Leader
from streamkit.replication.replica import Ends
from streamkit.simulator.disk import DiskFaults
from streamkit.simulator.faults import Faults
from streamkit.simulator.network import NetworkFaults
from streamkit.simulator.run import run
from streamkit.storage import identity, recovery

SEEDS_MAX = 200


def caught(promise: str, **faults: object) -> str:
    """The first violation that speaks of `promise`; fails when no seed shows one."""
    for seed in range(SEEDS_MAX):
        report = run(seed, copy.deepcopy(Faults(busy_seconds=2.0, records=120, **faults)))
        for violation in report.violations:
            if promise in violation:
                return violation
    raise AssertionError(f"{SEEDS_MAX} seeds, and nobody noticed")


def test_acknowledging_before_the_disk_has_it_is_caught(monkeypatch):
    monkeypatch.setattr(Ends, "at", lambda self, durability: self.appended)

    assert caught("is not at", acts={"crash_at_write": 1.0}, act_count=4, disk=DiskFaults(sync_seconds=0.05))


class _Peeking:
    """A shard as a fetch sees it that knows no high watermark."""

    def __init__(self, shard):
        object.__setattr__(self, "_shard", shard)

    def __getattr__(self, name):
        return self._shard.log.log_end if name == "high_watermark" else getattr(self._shard, name)

    def __setattr__(self, name, value):
        setattr(self._shard, name, value)


def test_reading_above_the_high_watermark_is_caught(monkeypatch):
    class Streams:
        def __init__(self, streams):
            self._streams = streams

        def shard(self, uuid):
            return _Peeking(self._streams.shard(uuid))

    init = Fetches.__init__
    monkeypatch.setattr(Fetches, "__init__", lambda self, streams, *others: init(self, Streams(streams), *others))

    assert caught("is there no more", acts={"power_loss": 1.0, "slow_disk": 1.0}, act_count=6)


def test_forgetting_the_high_watermark_at_a_restart_is_caught(monkeypatch):
    init = Leader.__init__

    def forgetful(self, **settings):
        init(self, **settings)
        self.high_watermark = 0

    monkeypatch.setattr(Leader, "__init__", forgetful)

    assert caught("fell from", acts={"kill_node": 1.0}, act_count=3)


def test_leaving_out_the_journal_at_recovery_is_caught(monkeypatch):
    monkeypatch.setattr(recovery, "replay_journal", lambda *_, **__: recovery.Replay())

    assert caught("is not at", acts={"power_loss": 1.0}, act_count=4)


def test_not_syncing_the_name_of_the_data_directory_is_caught(monkeypatch):
    monkeypatch.setattr(identity, "make_root", lambda disk, path: disk.make_directory(path))

    assert caught("did not start", acts={"power_loss": 1.0}, act_count=2)


def test_trusting_pages_after_a_failed_sync_is_caught(monkeypatch):
    monkeypatch.setattr(recovery._Scan, "_write_again", lambda *_: None)

    assert caught("shard", acts={"sync_fails": 1.0, "power_loss": 1.0}, act_count=5)


def test_retrying_without_idempotence_is_caught(monkeypatch):
    init = Outbox.__init__

    def careless(self, *arguments):
        init(self, *arguments)
        self._identity = NOBODY

    monkeypatch.setattr(Outbox, "__init__", careless)

    assert caught("and again at", acts={"break_connections": 1.0}, act_count=6, network=NetworkFaults(broken=0.02))


def _facts(walked):
    return {name: getattr(walked, name) for name in dir(walked) if not name.startswith("_")}


def test_forgetting_producers_at_recovery_is_caught(monkeypatch):
    take = recovery._Scan._take

    def forget(self, segment, walked):
        anonymous = [(*batch[:7], 0, *batch[8:]) for batch in walked.batches]
        take(self, segment, SimpleNamespace(**{**_facts(walked), "batches": anonymous}))

    monkeypatch.setattr(recovery._Scan, "_take", forget)

    assert caught("and again at", acts={"kill_node": 1.0}, act_count=6, network=NetworkFaults(broken=0.02))


def test_accepting_a_checkpoint_of_an_old_owner_is_caught(monkeypatch):
    checkpoint = Coordinator._checkpoint

    async def trusting(self, message, connection_id):
        leases = self.machine.table.applications[message.application].leases
        items = [
            m.CheckpointItem(item.shard, leases.row(item.shard)[2], item.number, item.sequence, item.attempts)
            for item in message.items
        ]
        return await checkpoint(self, m.Checkpoint(message.application, message.worker, tuple(items)), connection_id)

    monkeypatch.setattr(Coordinator, "_checkpoint", trusting)

    assert caught("had been granted", acts={"stop_worker": 1.0}, act_count=4, workers=2)


def test_handing_out_records_after_a_long_stop_is_caught(monkeypatch):
    monkeypatch.setattr(LeaseKeeper, "check_deadline", lambda self: True)

    assert caught("hands out records", acts={"stop_worker": 1.0}, act_count=6)


def test_passing_over_a_record_that_failed_is_caught(monkeypatch):
    async def careless(self, part, error):
        self._finish(part, 1)

    monkeypatch.setattr(Lane, "_failed", careless)

    assert caught("never processed")
