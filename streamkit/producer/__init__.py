"""Put without waiting: accumulate, send, retry. In order for each key, once, within a bounded buffer.

    put ──▶ _core.accumulator ──wake──▶ Sender (one a stream, on an event loop) ──▶ client.put_batch
    handle ◀── Delivery ◀── settled ◀──────┘ retries byte-identical batches

Not for routing to brokers or connections: that is `client`. Called by users, cli and everything that writes
streams. Read `producer.py` first, then `sender.py`; `verdict.py` says what a refusal means.
"""
