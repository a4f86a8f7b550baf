"""How the copies of a shard agree: `step(event) -> Effects`, nothing else.

    Follower    what a copy promises, takes in and answers, whoever leads
    Candidate   from an epoch won in the coordination store to leading, by sealing a majority
    Leader      from how far each copy reaches to how far readers may read
    ReplicaSet  who holds a shard, as the store says

Not for bytes, disks, sockets or clocks: the broker's `copy` is the owner that carries effects out, the simulator
drives the same code. With one copy the quorum is one; the rules are the same. Read `leader.py` first, then
`follower.py`, `candidate.py`.
"""
