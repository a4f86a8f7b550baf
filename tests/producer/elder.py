"""A process that puts under a name until it is shut out: address and name as arguments; says what it met."""

from __future__ import annotations

import sys

from streamkit import Producer
from streamkit.errors import ProducerFenced

if __name__ == "__main__":
    address, name = sys.argv[1:]
    producer = Producer("orders", url=address, name=name, batch_bytes_max=500)
    number = 0
    handles = []
    try:
        while True:
            handles.append(producer.put(b"elder %d" % number, key=f"k{number % 20}"))
            number += 1
            if number == 200:
                print("under way", flush=True)
            if number % 50 == 0:
                handles[-1].result(10)
    except ProducerFenced:
        refused = sum(isinstance(handle.exception(10), ProducerFenced) for handle in handles)
        print("fenced", refused, flush=True)
    try:
        producer.put_and_wait(b"elder late", key="k0")
    except ProducerFenced:
        print("still fenced", flush=True)
