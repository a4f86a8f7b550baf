"""One function for each rule of the protocol: it leaves that rule out of the shipped classes, and nothing else.

Each takes pytest's monkeypatch. `test_cluster_mutations` says in which world the loss of each shows.
"""

from __future__ import annotations

import dataclasses

import msgspec

from streamkit._core.producers import ProducerTable
from streamkit.broker import copies, elections, reconfigure
from streamkit.broker.copy import Copy
from streamkit.broker.feed import Feed
from streamkit.broker.shard_server import ShardServer
from streamkit.errors import StoreUnavailable
from streamkit.metadata.replica_sets import ReplicaSets, key_of
from streamkit.replication.candidate import Candidate
from streamkit.replication.effects import Verdict
from streamkit.replication.follower import Follower
from streamkit.replication.leader import Leader
from streamkit.replication.replica import Ends
from streamkit.storage import LogDirectory, NewShard, ShardLog
from streamkit.storage.changes import Changes
from tests.replication import mutations as rules

# ---- what is committed ---------------------------------------------------------------------------------------------


def a_leader_counts_its_own_copy_before_it_is_synced(patch):
    patch.setattr(Ends, "at", lambda self, durability: self.appended)


def a_copy_vouches_for_what_is_not_on_its_disk(patch):
    patch.setattr(Copy, "_safe_end", lambda self: self.log.log_end)


def learners_are_counted(patch):
    init = Leader.__init__

    def counting(self, *, others=(), **settings):
        init(self, **settings)
        self._ends |= dict.fromkeys(others, 0)

    patch.setattr(Leader, "__init__", counting)


# ---- what a copy takes in and answers ------------------------------------------------------------------------------


def promises_never_reach_the_disk(patch):
    async def forget(self, logs):
        """Nobody writes it."""

    patch.setattr(Changes, "promise", forget)


def a_promise_is_told_and_not_kept(patch):
    seal = Copy.seal

    async def lying(self, epoch):
        if not epoch or (self.entry.epoch == epoch and self.entry.leader == self._copies.node):
            return await seal(self, epoch)         # the candidate itself
        return dataclasses.replace(await seal(self, 0), epoch=epoch)

    patch.setattr(Copy, "seal", lying)


def all_that_is_here_is_vouched_for(patch):
    rules.all_that_is_here_is_vouched_for(patch)
    accepted = Feed._accepted

    def trusting(self, answer):
        accepted(self, answer)
        self.leader.on_acknowledged(self.node, answer.incarnation, answer.epoch, Verdict.ACCEPTED, answer.end)

    patch.setattr(Feed, "_accepted", trusting)


def what_was_not_compared_is_called_committed(patch):
    heard = Follower.heard

    def believing(self, offer, safe):
        effects = heard(self, offer, safe)
        known = min(offer.high_watermark, self.log.log_end)
        if known <= self.high_watermark:
            return effects
        self.high_watermark = known
        return dataclasses.replace(effects, high_watermark=known)

    patch.setattr(Follower, "heard", believing)


def a_leader_goes_on_beside_a_newer_one(patch):
    step_down = Copy.step_down

    def stay(self):
        if self.closed or self.server is None:
            step_down(self)

    patch.setattr(Copy, "step_down", stay)


# ---- who may lead --------------------------------------------------------------------------------------------------


def a_leader_is_written_over_whoever_was_faster(patch):
    swap = ReplicaSets.swap_many

    async def blind(self, changes):
        entries = {}
        for uuid, entry in changes.items():
            try:
                _, revision = await self._store.read(key_of(uuid))
            except StoreUnavailable:
                revision = entry.revision
            entries[uuid] = msgspec.structs.replace(entry, revision=revision)
        return await swap(self, entries)

    patch.setattr(ReplicaSets, "swap_many", blind)


def no_epoch_start_is_written(patch):
    patch.setattr(ShardLog, "start_epoch", lambda *_: None)


def what_others_knew_to_be_committed_is_forgotten(patch):
    lead = Candidate._lead
    patch.setattr(Candidate, "_lead", lambda self: dataclasses.replace(lead(self), lead=0))


def a_leader_answers_before_it_knows_enough(patch):
    patch.setattr(ShardServer, "is_readable", True)


def the_coordinator_opens_before_its_log_is_established(patch):
    patch.setattr(ShardServer, "is_established", True)


# ---- who may vote --------------------------------------------------------------------------------------------------


def lost_memory_goes_unnoticed(patch):
    patch.setattr(LogDirectory, "_doubt", lambda self, found, pledges_lost, power_lost: None)


def a_copy_on_an_empty_disk_is_the_one_that_was_there(patch):
    for module in (copies, elections, reconfigure):
        patch.setattr(module, "is_on_disk", lambda incarnation, disk: True)
    patch.setattr(copies, "NewShard", lambda incarnation, **facts: NewShard(incarnation, **facts | {"certain": True}))


# ---- who is a member -----------------------------------------------------------------------------------------------


def previous_members_are_forgotten_at_once(patch):
    patch.setattr(Copy, "is_established", property(lambda self: self.server is not None))


# ---- producers and shards ------------------------------------------------------------------------------------------


def what_others_put_is_not_noted_of_its_producers(patch):
    accept = ShardLog.accept

    def careless(self, run, **facts):
        known, self.producers = self.producers, ProducerTable(1000)
        try:
            return accept(self, run, **facts)
        finally:
            self.producers = known

    patch.setattr(ShardLog, "accept", careless)


def what_was_cut_off_is_remembered_of_its_producers(patch):
    truncate = LogDirectory.truncate

    async def careless(self, log, sequence):
        producers = log.producers
        await truncate(self, log, sequence)
        log.producers = producers

    patch.setattr(LogDirectory, "truncate", careless)
