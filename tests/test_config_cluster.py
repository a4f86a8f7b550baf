"""The cluster's part of the configuration: where nodes agree, who they are, and what is refused."""

import pytest

from streamkit.cluster_node import cluster_config
from streamkit.config import ClusterSection, ClusterUrl, compose, parse_cluster_url
from streamkit.errors import InvalidConfig


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("etcd://127.0.0.1:2379", ClusterUrl("etcd", ("127.0.0.1:2379",), "streamkit")),
        ("etcd://a:1,b.example:2,[::1]:3/prod/eu/", ClusterUrl("etcd", ("a:1", "b.example:2", "[::1]:3"), "prod/eu")),
        ("sqlite:///data/cluster.sqlite", ClusterUrl("sqlite", path="/data/cluster.sqlite")),
    ],
)
def test_a_url_names_hosts_and_prefix_or_a_file(url, means):
    assert parse_cluster_url(url) == means
    assert compose(flags={"cluster.url": url, "node.name": "a"}).config.cluster.url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://a:1", "etcd://", "etcd://a", "etcd://a:1,", "etcd://a:1/pre fix", "etcd://user@a:1", "sqlite://file",
        "sqlite:///", "sqlite:///folder/", "a:1",
    ],
)
def test_another_url_is_refused_with_its_key(url):
    with pytest.raises(InvalidConfig, match=r"cluster\.url (must|has)") as caught:
        compose(flags={"cluster.url": url, "node.name": "a"})

    assert caught.value.facts["key"] == "cluster.url"


@pytest.mark.parametrize("name", ["a/b", "", " a", "-a", "a" * 64, "ä", "a\n"])
def test_a_node_of_a_cluster_has_a_name_that_fits_a_key(name):
    with pytest.raises(InvalidConfig, match=r"node\.name must be|needs a name"):
        compose(flags={"cluster.url": "etcd://a:1", "node.name": name})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"listen.host": "unix:/tmp/socket"}, "over a network"),
        ({"listen.host": "0.0.0.0", "listen.accept_insecure": True}, "nobody can reach a node at 0.0.0.0"),
        ({"cluster.etcd.certificate_file": "node.pem"}, "named together"),
        ({"cluster.etcd.certificate_file": "node.pem", "cluster.etcd.key_file": "node.key"}, "authority"),
        ({"cluster.replicas": 0}, "cluster.replicas must be 1..7"),
        ({"cluster.suspect_ms": 1}, "cluster.suspect_ms must be 100..60000"),
    ],
)
def test_what_cannot_work_together_is_refused(flags, words):
    with pytest.raises(InvalidConfig, match=words):
        compose(flags={"cluster.url": "etcd://a:1", "node.name": "a", **flags})


def test_without_a_cluster_nothing_more_is_asked_for():
    assert compose().config.cluster.url == ""
    assert compose(flags={"listen.host": "unix:/tmp/socket"}).config.listen.host == "unix:/tmp/socket"


@pytest.mark.parametrize("suspect_ms", [100, 300, 1_500, 60_000])
def test_idle_nodes_are_heard_several_times_before_they_are_suspected(suspect_ms):
    config = cluster_config(ClusterSection(suspect_ms=suspect_ms))

    assert config.peers.beat_ms <= config.elections.suspect_ms // 3
    assert 2 * config.peers.beat_ms <= config.peers.silence_ms
