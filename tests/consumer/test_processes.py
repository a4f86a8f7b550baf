"""Real worker processes, killed and stopped: another takes over, and what the dead one says late is refused."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamkit.client.client import AsyncClient
from streamkit.client.sync import Client
from streamkit.config import compose
from streamkit.consumer.running import Running
from streamkit.errors import InvalidUse, LeaseLost
from streamkit.node import Node
from streamkit.producer.producer import Producer
from streamkit.protocol.messages import Checkpoint, CheckpointItem, DescribeApplication
from streamkit.runtime.real import LoopThread, real_runtime
from tests.consumer.bottle import consumer

SECONDS_MAX = 30.0


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    thread = LoopThread.shared()
    flags = {
        "listen.native.port": 0, "listen.health.enabled": False, "listen.http.enabled": False,
        "storage.free_bytes_min": 0,
    }  # fmt: skip

    async def start() -> Node:
        node = Node(compose(flags=flags).config, real_runtime(), data_dir=str(tmp_path / "data"))
        await node.start()
        return node

    node = thread.run(start())
    yield node.addresses.native
    thread.run(node.stop(1))


class Workers:
    """Processes and everything they say, in the order it is heard."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: queue.SimpleQueue[tuple[str, list[str]]] = queue.SimpleQueue()
        self.all: list[tuple[str, list[str]]] = []
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *mode: str) -> None:
        self.launch(name, "tests.consumer.worker_process", name, self.address, *mode)

    def launch(self, name: str, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes[name] = process
        threading.Thread(target=self._listen, args=(name, process), daemon=True).start()

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.heard.put((name, line.split()))
        self.heard.put((name, ["ended"]))

    def until(self, condition: Any) -> None:
        """Listen until condition(name, words) holds for something heard."""
        while True:
            name, words = self.heard.get(timeout=SECONDS_MAX)
            self.all.append((name, words))
            if condition(name, words):
                return

    def records(self, name: str | None = None) -> list[int]:
        return [int(words[1]) for who, words in self.all if words[0] == "record" and name in (None, who)]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def workers(address: str) -> Iterator[Workers]:
    made = Workers(address)
    yield made
    made.close()


def fill(address: str, shards: int, count: int) -> None:
    with Client(address) as client:
        client.create_stream("s", shards=shards, durability="os")
    put(address, range(count))


def put(address: str, values: Any) -> None:
    with Producer("s", url=address) as producer:
        for number in values:
            producer.put(number, key=f"k{number}")


def lag(address: str) -> Any:
    asking: Running = consumer("asking", url=address)
    return asking.lag()


def test_a_killed_workers_shards_are_taken_over_and_no_record_is_lost(address, workers):
    fill(address, 2, 400)
    workers.start("w1")
    workers.until(lambda name, words: words[0] == "record")
    workers.start("w2")
    workers.until(lambda name, words: name == "w2" and words[0] == "begin")
    mine = {shard.shard for shard in lag(address).shards if shard.owner == "w1"}

    workers.processes["w1"].send_signal(signal.SIGKILL)
    if mine:
        workers.until(lambda name, words: name == "w2" and words[0] == "begin" and words[1] in mine)
    put(address, range(400, 420))
    workers.until(lambda name, words: set(workers.records()) == set(range(420)))

    workers.processes["w2"].send_signal(signal.SIGTERM)
    workers.until(lambda name, words: (name, words) == ("w2", ["ended"]))
    assert workers.processes["w2"].wait(SECONDS_MAX) == 0
    assert lag(address).records == 0


def test_a_stopped_worker_that_wakes_is_given_no_record_and_its_checkpoint_is_refused(address, workers):
    fill(address, 1, 300)
    workers.start("w1")
    workers.until(lambda name, words: len(workers.records("w1")) >= 20)
    workers.processes["w1"].send_signal(signal.SIGSTOP)
    workers.start("w2")
    workers.until(lambda name, words: name == "w2" and words[0] == "begin")
    workers.until(lambda name, words: set(workers.records()) == set(range(300)))
    before = len(workers.records("w1"))

    workers.processes["w1"].send_signal(signal.SIGCONT)
    workers.until(lambda name, words: name == "w1" and words[0] == "lost")

    assert len(workers.records("w1")) <= before + 5, "at most the batch that it had in hand"
    begun = [words for name, words in workers.all if name == "w2" and words[0] == "begin"]
    assert int(begun[0][3]) == 2, "the new owner's fencing token is higher"
    assert lag(address).shards[0].owner in ("w1", "w2")


def test_a_zombies_late_checkpoint_and_fetch_are_refused_and_change_nothing(address, workers):
    fill(address, 1, 100)
    workers.start("w1", "holding")
    workers.until(lambda name, words: words[0] == "holding")
    w1 = workers.processes["w1"]
    end, lease_epoch, session = (int(word) for word in workers.all[-1][1][1:])
    w1.send_signal(signal.SIGSTOP)
    workers.start("w2", "silent")          # so that the stored checkpoint is still below what the zombie will say
    workers.until(lambda name, words: name == "w2" and words[0] == "begin")
    position, new_epoch = (int(word) for word in workers.all[-1][1][2:])
    assert position == 0 < end and new_epoch == lease_epoch + 1, "from the checkpoint, with a higher fencing token"
    workers.until(lambda name, words: set(workers.records("w2")) == set(range(100)))
    with Client(address) as client:
        shard = client.describe_stream("s").shards[0]
    given = len(workers.records("w1"))

    assert w1.stdin is not None
    print(file=w1.stdin, flush=True)       # the handler goes on as soon as the process does
    w1.send_signal(signal.SIGCONT)
    workers.until(lambda name, words: name == "w1" and words[0] == "refused")
    workers.until(lambda name, words: name == "w1" and words[0] == "lost")

    async def late() -> tuple[Any, int]:
        async with AsyncClient(address) as client:
            item = CheckpointItem(shard.uuid, lease_epoch, 1_000_000, end)
            answer = await client.call(Checkpoint("app", "w1", (item,)))
            with pytest.raises(LeaseLost) as refused:
                await client.fetch(shard, 0, application="app", session=session, lease_epoch=lease_epoch)
            assert refused.value.facts["lease_epoch"] == lease_epoch
            described = await client.call(DescribeApplication("app"))
            return answer.results, described.leases[0].checkpoint

    assert LoopThread.shared().run(late()) == (("fenced",), position)
    assert len(workers.records("w1")) == given, "a zombie is given no further batch"


def pids(workers: Workers) -> dict[str, int]:
    """The latest process of each worker."""
    return {words[2]: int(words[3]) for _, words in workers.all if words[0] == "record"}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def until_gone(*processes: int) -> None:
    ended_s = time.monotonic() + SECONDS_MAX
    while not all(map(gone, processes)):
        assert time.monotonic() < ended_s, "a process was left behind"
        time.sleep(0.02)


def launched(address: str, workers: Workers, count: int) -> dict[str, int]:
    workers.launch("many", "tests.consumer.processes_process", address, str(count))
    workers.until(lambda name, words: len(pids(workers)) == count)
    return pids(workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_share_the_leases_and_end_in_order_with_their_parent(address, workers, number):
    fill(address, 4, 400)
    children = launched(address, workers, 2)
    assert set(children) == {"many-0", "many-1"} and len(set(children.values())) == 2
    assert set(lag(address).workers) == {"many-0", "many-1"}

    workers.processes["many"].send_signal(number)
    workers.until(lambda name, words: words == ["over"])
    assert workers.processes["many"].wait(SECONDS_MAX) == 0
    until_gone(*children.values())
    assert lag(address).workers == (), "they left; nobody waits for a time-out"


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(address, workers):
    fill(address, 4, 400)
    children = launched(address, workers, 2)

    os.kill(children["many-0"], signal.SIGKILL)
    workers.until(lambda name, words: set(workers.records()) == set(range(400)))
    put(address, range(400, 480))
    workers.until(lambda name, words: pids(workers)["many-0"] != children["many-0"])
    workers.until(lambda name, words: set(workers.records()) == set(range(480)))

    workers.processes["many"].send_signal(signal.SIGTERM)
    assert workers.processes["many"].wait(SECONDS_MAX) == 0
    until_gone(*pids(workers).values())


def test_processes_end_when_their_parent_is_killed(address, workers):
    fill(address, 4, 400)
    children = launched(address, workers, 3)

    workers.processes["many"].kill()
    workers.processes["many"].wait(SECONDS_MAX)
    until_gone(*children.values())
    assert lag(address).workers == ()


def test_processes_that_fail_end_the_others_and_run_says_so(address, workers):
    workers.launch("many", "tests.consumer.processes_process", address, "2")      # there is no such stream
    workers.until(lambda name, words: words == ["ended"])
    assert workers.processes["many"].wait(SECONDS_MAX) == 1


def test_processes_are_refused_where_they_cannot_work(address):
    made = consumer("w1", url=address, processes=2)
    made.handler(lambda value: None)
    with pytest.raises(InvalidUse, match="before streamkit has started threads"):
        made.run()                         # this process has an event loop's thread
    with pytest.raises(InvalidUse, match="only run"):
        made.start()
    with pytest.raises(InvalidUse, match="processes must be"):
        consumer("w1", processes=0)
