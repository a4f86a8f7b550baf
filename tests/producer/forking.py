"""A process whose producer has a full buffer forks children that put: address and rounds as arguments."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

from streamkit import Producer
from streamkit.errors import BufferFull, ForkedHandle, NameInUse

CHILDREN = 8
PUTS = 20


def child(address: str, round_: int, number: int, inherited: Producer, handle: object) -> None:
    for call in (lambda: inherited.put(b"stolen", key="k"), lambda: Producer("orders", url=address, name="importer")):
        try:
            call()
            raise AssertionError("the name is the parent's")
        except NameInUse:
            pass
    with contextlib.suppress(ForkedHandle):            # settled before the fork, or the parent's to settle
        handle.result(5)  # type: ignore[attr-defined]
    with Producer("orders", url=address) as producer:
        for i in range(PUTS):
            producer.put(b"child %d %d %d" % (round_, number, i), key=f"c{i}")


def main(address: str, rounds: int) -> None:
    parent = Producer("orders", url=address, name="importer", buffer_bytes_max=20_000, on_full="raise")
    put = 0
    for round_ in range(rounds):
        handle = None
        while True:
            try:
                handle = parent.put(b"parent %d" % put, key=f"p{put % 9}")
                put += 1
            except BufferFull:
                break
        children = []
        for number in range(CHILDREN):
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    child(address, round_, number, parent, handle)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(process)
        assert all(os.waitpid(process, 0)[1] == 0 for process in children)
        parent.flush(30)
    parent.close()
    print(put)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
