"""The function style: the annotation says what it gets, and what does not fit it is not handled but told."""

import msgspec

from streamkit import Consumer, Context, RetryPolicy


class Order(msgspec.Struct):
    id: int
    total: float


consumer = Consumer(
    "orders", application="billing", start="trim_horizon",
    retry=RetryPolicy(attempts_max=5, first_ms=200, last_ms=30_000),
)


@consumer.handler
async def bill(order: Order, ctx: Context) -> None:
    print(f"bill {order.id}: {order.total} from {ctx.shard}", flush=True)


if __name__ == "__main__":
    consumer.run()
