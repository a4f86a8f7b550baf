"""A process that copies lines into a stream: address, path and how many a line of output; goes on where it was."""

from __future__ import annotations

import sys

from streamkit import Producer


def main(address: str, path: str, step: int) -> None:
    print("begun", flush=True)
    with Producer(
        "orders", url=address, name="copier", codec="bytes", batch_bytes_max=1_000, buffer_bytes_max=30_000, linger_ms=0
    ) as producer:
        last = producer.last_app_seq("lines")
        print("resumed", flush=True)
        with open(path, "rb") as lines:
            for number, line in enumerate(lines):
                if last is not None and number <= last:
                    continue
                producer.put(line, key=f"k{number % 23}", app_seq=number, channel="lines")
                if number % step == 0:
                    print(number, flush=True)
    print("copied", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
