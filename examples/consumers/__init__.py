"""The three forms of a consumer, and exactly once: small programs to begin with. Start `streamkit serve --dev` first.

    python -m examples.consumers.put            three orders
    python -m examples.consumers.function       a function for each record
    python -m examples.consumers.processor      an object for each shard
    python -m examples.consumers.pull           a loop over batches
    python -m examples.consumers.exactly_once   a function whose writes and position are one transaction
"""
