"""Who owns which shard of an application, and how far each is processed: the rules behind the coordinator.

Pure: `step(event) -> Effects`, with the time inside the event. What must survive is written as facts; replaying
the facts gives the same leases. Not for I/O, clocks, the wire or the catalog: `broker.coordinator` has those and
carries the effects out; the simulator is another owner. Read `applications.py` first, then `table.py` and `lineage.py`.

    ready ──grant──▶ owned(A) ──drain──▶ draining(A, deadline) ──release, deadline, A gone──▶ ready ──grant──▶ owned(B)
                        │ pause                │ pause
                        └──────▶ paused ◀──────┘        paused ──resume──▶ ready

    waiting ──its parents are complete, or gone──▶ ready       any ──processed to the end of a closed shard──▶ complete
"""
