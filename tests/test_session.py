"""Embedded: a whole node in this process, on the same files as a served one."""

import subprocess
import sys

import pytest

from streamkit import session
from streamkit._core.batch import Batch
from streamkit.errors import Closed, ConnectionFailed, DataDirectoryLocked, StreamkitError, StreamNotFound
from streamkit.node import Node
from streamkit.runtime.real import LoopThread, real_runtime
from tests.broker.conftest import batch_of, config


def values(client, name):
    found = []
    for shard in client.describe_stream(name).shards:
        at = 0
        while True:
            fetched = client.fetch(shard, at, wait_ms=0)
            if fetched.next_sequence == at:
                break
            for stored in fetched.batches:
                batch = Batch(stored, None, at)
                found += [] if batch.is_control else [bytes(record.data) for record in batch]
            at = fetched.next_sequence
    return found


class Served:
    """The same directory behind a port, on the background loop."""

    def __init__(self, path):
        self.node = Node(config(), real_runtime(), data_dir=path)

    def __enter__(self):
        LoopThread.shared().run(self.node.start())
        return self.node.addresses.native

    def __exit__(self, *_):
        LoopThread.shared().run(self.node.stop(2))


def put(client, name, value):
    shard = client.stream(name).shards[0]
    return client.put_batch(shard, batch_of(value))


def test_a_directory_written_embedded_is_served_later_and_the_other_way_round(tmp_path):
    path = str(tmp_path / "data")
    with session.open(path) as embedded:
        put(embedded.client, "orders", b"embedded")
    with Served(path) as address, session.connect(address) as remote:
        put(remote.client, "orders", b"served")
        assert values(remote.client, "orders") == [b"embedded", b"served"]
    with session.open(path) as embedded:
        assert values(embedded.client, "orders") == [b"embedded", b"served"]


def test_a_directory_is_open_once(tmp_path):
    path = str(tmp_path / "data")
    with session.open(path):
        with pytest.raises(DataDirectoryLocked):
            session.open(path)
        with pytest.raises(DataDirectoryLocked), Served(path):
            raise AssertionError("it was locked")


def test_two_directories_are_two_worlds(tmp_path):
    with session.open(str(tmp_path / "a")) as one, session.open(str(tmp_path / "b")) as two:
        put(one.client, "orders", b"one")
        assert [stream.name for stream in two.client.list_streams()] == []


def test_streams_are_made_on_first_use_unless_told_otherwise(tmp_path):
    with session.open(str(tmp_path / "a"), {"streams.auto_create": False}) as opened, pytest.raises(StreamNotFound):
        opened.client.stream("orders")


def test_a_producer_of_a_session_writes_into_its_node(tmp_path):
    with session.open(str(tmp_path / "a")) as opened:
        with opened.producer("orders") as producer:
            handles = [producer.put(b"%d" % number, key="k") for number in range(1000)]
        assert all(handle.done() for handle in handles)
        assert values(opened.client, "orders") == [b"%d" % number for number in range(1000)]


def test_a_closed_session_says_so(tmp_path):
    opened = session.open(str(tmp_path / "a"))
    client = opened.client
    client.list_streams()
    opened.close()
    opened.close()

    with pytest.raises(Closed):
        _ = opened.client
    with pytest.raises((Closed, ConnectionFailed)):
        client.list_streams()


def test_a_file_where_the_directory_should_be_is_one_clear_error(tmp_path):
    (tmp_path / "a").write_text("not a directory")
    with pytest.raises(StreamkitError):
        session.open(str(tmp_path / "a"))


def test_importing_the_package_loads_no_server_code():
    code = (
        "import sys, streamkit, streamkit.session; "
        "bad = [n for n in sys.modules if n.startswith(('streamkit.broker', 'streamkit.storage', 'streamkit.metadata', "
        "'streamkit.http', 'prometheus_client', 'sqlite3', 'httptools', 'streamkit.node'))]; print(bad)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
