"""The class style: one object a shard, from its first record to the loss of the lease; checkpoints by hand."""

from typing import Any

from streamkit import Batch, Checkpointer, RecordProcessor, ShardContext, Worker


class Totals(RecordProcessor):
    async def initialize(self, ctx: ShardContext) -> None:
        self.shard = ctx.shard
        self.total = 0.0

    async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
        for record in batch:
            self.total += record.value["total"]
        print(f"total {self.total:.1f} of {self.shard}", flush=True)
        await checkpointer.checkpoint()

    async def shutdown_requested(self, checkpointer: Checkpointer) -> None:
        await checkpointer.checkpoint()


if __name__ == "__main__":
    Worker("orders", application="totals", start="trim_horizon", processor=Totals).run()
