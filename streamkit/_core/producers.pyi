Buffer = bytes | bytearray | memoryview

class ProducerTable:
    producers_max: int
    def __init__(self, producers_max: int) -> None: ...
    def __len__(self) -> int: ...
    def replay(
        self,
        producer_id: int,
        producer_epoch: int,
        producer_sequence: int,
        records: int,
        base_sequence: int,
        append_time_ms: int,
        flags: int = 0,
    ) -> None: ...
    def note_late(
        self,
        producer_id: int,
        producer_epoch: int,
        producer_sequence: int,
        records: int,
        base_sequence: int,
        append_time_ms: int,
        flags: int = 0,
    ) -> None: ...
    def to_bytes(self, position: int, sequence: int) -> bytes: ...
    @staticmethod
    def from_bytes(data: Buffer, producers_max: int) -> tuple[ProducerTable, int, int] | None: ...
