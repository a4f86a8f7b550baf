"""A real etcd killed, stopped, compacted, or one of three: what is known stays, and every change has one fate."""

import asyncio
import shutil
import subprocess
from contextlib import suppress

import pytest

from streamkit.errors import InvalidConfig, StoreUnavailable
from streamkit.metadata.etcd_store import EtcdStore
from streamkit.metadata.members import Members
from streamkit.metadata.replica_sets import ReplicaSetEntry, ReplicaSets
from streamkit.metadata.store import Change, Listing, Swap
from streamkit.metadata.stores import Certificates, open_url
from streamkit.replication.replica_set import Member, ReplicaSet
from streamkit.runtime.real import real_runtime
from tests.etcd import Etcd
from tests.metadata.nodes import directory

UUID = bytes(range(16))
ENTRY = ReplicaSetEntry.of("orders", ReplicaSet(1, "a", (Member("a", bytes(16)),)))
TIMEOUT_MS = 400


@pytest.fixture
def runtime():
    return real_runtime()


@pytest.fixture
async def own(tmp_path):
    """An etcd of the test's own, to be mistreated."""
    async with Etcd(tmp_path) as server:
        yield server


async def opened(server, runtime):
    return await EtcdStore.open(server.endpoints, runtime, timeout_ms=TIMEOUT_MS)


async def next_change(news):
    """Past the listings that an interruption may have cost."""
    while True:
        item = await asyncio.wait_for(anext(news), 20)
        if isinstance(item, Change):
            return item


async def test_a_watch_goes_on_after_etcd_was_killed_and_started_again(own, runtime):
    store, other = await opened(own, runtime), await opened(own, runtime)
    news = store.follow("s/")
    await anext(news)
    own.kill()
    with pytest.raises(StoreUnavailable) as caught:
        await store.compare_and_swap("s/a", 0, b"1")
    assert caught.value.facts["outcome"] in ("not_done", "unknown")
    assert own.endpoints[0] in str(caught.value)
    await own.restart()
    revision = await other.compare_and_swap("s/b", 0, b"2")

    assert await next_change(news) == Change("s/b", b"2", revision)
    await news.aclose()
    await store.close()
    await other.close()


async def test_history_that_was_compacted_while_a_watch_was_broken_is_listed_again(own, runtime):
    store, other = await opened(own, runtime), await opened(own, runtime)
    gone = await store.compare_and_swap("s/gone", 0, b"")
    news = store.follow("s/")
    assert isinstance(await anext(news), Listing)
    own.kill()
    await own.restart()
    await other.compare_and_swap_many([Swap("s/gone", gone, None), Swap("s/new", 0, b"")])
    await other.compare_and_swap("x", 0, b"")
    await own.compact()

    keys = {"s/gone"}
    while keys != {"s/new"}:
        item = await asyncio.wait_for(anext(news), 20)
        if isinstance(item, Listing):
            keys = {entry.key for entry in item.entries}
        else:
            (keys.discard if item.value is None else keys.add)(item.key)
    await news.aclose()
    await store.close()
    await other.close()


async def test_a_store_that_does_not_answer_takes_its_time_limit_and_a_change_ends_in_one_way(own, runtime):
    store = await opened(own, runtime)
    sets = await ReplicaSets.open(store)
    own.stop_process()
    with pytest.raises(StoreUnavailable) as caught:
        await store.compare_and_swap("s/a", 0, b"1")
    assert caught.value.facts["outcome"] == "unknown"
    with pytest.raises(StoreUnavailable) as caught:
        await store.read("s/a")
    assert caught.value.facts["outcome"] == "not_done"
    changing = asyncio.ensure_future(sets.swap(UUID, 0, ENTRY))
    await asyncio.wait([changing], timeout=TIMEOUT_MS / 1000)
    assert sets.entries == {}                            # whoever reads does not wait
    own.continue_process()

    entry = await changing
    assert sets.entries[UUID] == entry
    assert (await store.read("replicas/" + UUID.hex()))[1] == entry.revision
    await sets.close()
    await store.close()


async def test_a_node_outlives_a_restart_of_etcd_and_a_lost_lease(own, runtime):
    store = await opened(own, runtime)
    members = await Members.open(store, runtime, ttl_ms=2_000)
    await members.join(directory("a").identity("a"), address="a:1", peer_address="a:2")
    own.kill()
    while not members.store_trouble:                     # noqa: ASYNC110 - until it has been asked
        await asyncio.sleep(0.02)
    assert list(members.nodes) == ["a"]
    await own.restart()
    await store.revoke(members._registration.lease)
    while members.store_trouble or (await store.read("nodes/a"))[0] is None:     # noqa: ASYNC110
        await asyncio.sleep(0.02)

    assert members.replaced is None
    await members.leave()
    assert await store.read("nodes/a") == (None, 0)
    await store.close()


async def test_a_registration_that_nobody_renews_expires(etcd, runtime):
    store = await EtcdStore.open(etcd.endpoints, runtime, prefix="expiry")
    await store.register("nodes/a", b"", 1_000)
    news = store.follow("nodes/")
    assert len((await anext(news)).entries) == 1

    assert (await next_change(news)).value is None
    await news.aclose()
    await store.close()


async def test_of_three_members_any_one_may_be_killed_or_stopped(tmp_path, runtime):
    async with Etcd(tmp_path, members=3) as three:
        store = await EtcdStore.open(three.endpoints, runtime)
        news = store.follow("s/")
        await anext(news)
        revision = 0
        for index in range(3):
            (three.kill, three.stop_process)[index % 2](index)
            for attempt in range(40):
                made = None
                with suppress(StoreUnavailable):
                    made = await store.compare_and_swap("s/a", revision, b"%d" % index)
                with suppress(StoreUnavailable):           # nobody leads them yet
                    found, now = await store.read("s/a") if made is None else (None, made)
                    if made or found == b"%d" % index:
                        revision = now
                        break
                await asyncio.sleep(0.1)                   # before it is tried again
                assert attempt < 39
            while (await next_change(news)).revision < revision:
                pass
            three.continue_process(index)
            await three.restart()
        await news.aclose()
        await store.close()


async def test_nobody_there_is_said_in_one_line(runtime):
    with pytest.raises(StoreUnavailable, match=r"etcd at 127\.0\.0\.1:1 cannot be used: nobody answers") as caught:
        await open_url("etcd://127.0.0.1:1/x", runtime)
    assert caught.value.facts["outcome"] == "not_done"
    assert "--cluster" in caught.value.try_


async def test_prefixes_keep_clusters_apart(etcd, runtime):
    one, two = [await open_url(f"{etcd.url}-{name}", runtime) for name in ("one", "two")]
    await one.compare_and_swap("a", 0, b"1")

    assert await two.read("a") == (None, 0)
    assert await two.list("") == []
    await one.close()
    await two.close()


# -- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """Two authorities; the first has signed etcd's certificate and a node's."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.fail("there is no openssl: apt-get install openssl")

    def run(*arguments):
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ours", "theirs"):
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
            "-subj", f"/CN={name}", "-days", "2")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("etcd", "node"):
        run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
            "-subj", f"/CN={name}")  # fmt: skip
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ours.pem", "-CAkey", "ours.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder


async def test_a_node_with_the_right_certificates_is_let_in_and_others_are_not(authorities, tmp_path, runtime):
    file = {name: str(authorities / name) for name in ("ours.pem", "theirs.pem", "node.pem", "node.key")}
    tls = {"certificate": str(authorities / "etcd.pem"), "key": str(authorities / "etcd.key"), "ca": file["ours.pem"]}
    async with Etcd(tmp_path, tls=tls) as server:
        right = Certificates(ca_file=file["ours.pem"], certificate_file=file["node.pem"], key_file=file["node.key"])
        store = await open_url(server.url, runtime, right)
        assert await store.compare_and_swap("a", 0, b"1")
        await store.close()
        for wrong in (
            Certificates(ca_file=file["theirs.pem"], certificate_file=file["node.pem"], key_file=file["node.key"]),
            Certificates(ca_file=file["ours.pem"]),
            None,
        ):
            with pytest.raises(StoreUnavailable) as caught:
                await open_url(server.url, runtime, wrong)
            assert caught.value.facts["outcome"] == "not_done"


async def test_a_certificate_that_cannot_be_read_is_named(etcd, runtime, tmp_path):
    with pytest.raises(InvalidConfig, match=r"none\.pem cannot be read"):
        await open_url(etcd.url, runtime, Certificates(ca_file=str(tmp_path / "none.pem")))
