"""`streamkit serve`: one node in this process, or several in processes of their own, until asked to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import emit, size

if TYPE_CHECKING:
    from streamkit.config import Config
    from streamkit.node import Node


@click.command()
@click.option("--dev", is_flag=True, default=None, help="Make streams on first use; choose a data directory.")
@click.option("--config", "path", metavar="FILE", help="Read this configuration file.")
@click.option("--data", "data_dir", metavar="DIR", help="Keep everything here.")
@click.option("--listen", "host", metavar="HOST", help="Host of all listeners (default: 127.0.0.1).")
@click.option("--port", type=int, default=None, help="Port of the native protocol (default: 7440; 0: any free one).")
@click.option("--http-port", type=int, default=None, help="Port of the Kinesis API (default: 7441).")
@click.option("--https-host", metavar="HOST", help="Host of that listener alone; off this machine it wants keys.")
@click.option("--https-port", type=int, default=None, help="The same over TLS, with --certificate (default: 7443).")
@click.option("--certificate", metavar="FILE", help="PEM file of the certificate for TLS.")
@click.option("--certificate-key", metavar="FILE", help="PEM file of its key.")
@click.option("--health-port", type=int, default=None, help="Port of /live, /ready and /metrics (default: 7445).")
@click.option(
    "--accept-insecure", is_flag=True, default=None, help="Listen beyond this machine without TLS and login."
)
@click.option("--node-id", "name", metavar="NAME", help="The node's name; in a cluster its own for good.")
@click.option("--cluster", "cluster_url", metavar="URL", help="Join: etcd://HOST:PORT[,…][/PREFIX] or sqlite:///FILE.")
@click.option("--zone", metavar="NAME", help="What the node shares its fate with; copies lie in different zones.")
@click.option("--peer-port", type=int, default=None, help="Port for the other nodes (default: 7442).")
@click.option(
    "--replicas", type=click.IntRange(1, 7), metavar="N",
    help="Run N nodes on this machine that keep a copy of every record each; for development.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), metavar="N",
    help="Run N nodes on this machine that share the shards, one copy each; for more than one processor.",
)
@click.option("--supervised-by", "parent", type=int, metavar="PID", hidden=True, help="End when that process ends.")
@common
@pass_invocation
def serve(
    invocation: Invocation, dev: bool | None, path: str | None, data_dir: str | None, host: str | None,
    port: int | None, http_port: int | None, https_host: str | None, https_port: int | None,
    certificate: str | None, certificate_key: str | None, health_port: int | None, accept_insecure: bool | None,
    name: str | None, cluster_url: str | None, zone: str | None, peer_port: int | None, replicas: int | None,
    workers: int | None, parent: int | None,
) -> None:  # fmt: skip
    """Run a node.

    Every put is on disk before it is acknowledged, unless its stream says otherwise; in a cluster on the disks of a
    majority of its copies. Ctrl-C stops in order, twice at once. With --port 0 the other ports are free, too, unless
    they are given. --replicas and --workers run several nodes, with a directory each below --data; a node that ends is
    started again.
    """
    from streamkit.cli.configuration import load_configuration

    if parent is not None:
        from streamkit.runtime.children import end_with

        end_with(parent)
    if port == 0:
        http_port = 0 if http_port is None else http_port
        https_port = 0 if https_port is None else https_port
        health_port = 0 if health_port is None else health_port
        peer_port = 0 if peer_port is None else peer_port
    config = load_configuration(
        path,
        {
            "node.dev": dev, "storage.data_dir": data_dir, "listen.host": host, "listen.native.port": port,
            "listen.http.port": http_port, "listen.https.host": https_host,
            "listen.https.port": https_port,
            "listen.https.certificate_file": certificate, "listen.https.key_file": certificate_key,
            "listen.health.port": health_port, "listen.accept_insecure": accept_insecure, "node.name": name,
            "cluster.url": cluster_url, "cluster.zone": zone, "listen.peer.port": peer_port,
        },
    ).config  # fmt: skip
    directory = config.storage.data_dir or _own_directory(config)
    if replicas is not None or workers is not None:
        from streamkit.cli.local_cluster import LocalCluster

        _log_to_stderr(config)
        raise click.exceptions.Exit(LocalCluster(invocation, config, directory, path, replicas, workers).run())
    _log_to_stderr(config, prefix=f"{config.node.name}  " if parent is not None else "")
    from streamkit.runtime.real import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(invocation, config, directory, as_json=invocation.json or parent is not None))


async def _serve(invocation: Invocation, config: Config, directory: str, *, as_json: bool) -> None:
    from streamkit.node import Node
    from streamkit.runtime.real import real_runtime
    from streamkit.runtime.shutdown import StopSignal

    started = time.perf_counter()
    node = Node(config, real_runtime(), data_dir=directory)
    async with StopSignal() as stop:
        await node.start()
        _settle_collector()
        _announce(invocation, node, directory, time.perf_counter() - started, as_json=as_json)
        ended = asyncio.ensure_future(node.ended())
        asked = asyncio.ensure_future(stop.wait())
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        await node.stop()
        if ended.done():
            raise ended.result()           # one line says why, and what to do
        ended.cancel()


def _settle_collector() -> None:
    """Let the cycle collector look at what requests leave, seldom, and not at what the node is made of.

    Records are memory that kernels own and free by count; cycles are rare. At the default of 700 new objects a
    collection, going over modules, shards and connections took a twentieth of a busy broker's time. Here and not in the
    node, because it holds for a whole process: an embedding program decides for itself.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _announce(invocation: Invocation, node: Node, directory: str, seconds: float, *, as_json: bool) -> None:
    from streamkit import __version__

    native, health, peer = node.addresses.native, node.addresses.health, node.addresses.peer
    http, https = node.addresses.http, node.addresses.https
    native_url = native if native.startswith("unix:") else f"streamkit://{native}"
    described = node.describe()
    if as_json:
        emit(
            "node",
            {
                "node": node.name, "version": __version__, "pid": os.getpid(), "native": native_url,
                "http": f"http://{http}" if http else None, "https": f"https://{https}" if https else None,
                "health": f"http://{health}" if health else None, "peer": peer or None,
                "cluster": node.config.cluster.url or None, "data": str(Path(directory).resolve()),
                "dev": node.config.node.dev, "insecure": [plan.address for plan in node.insecure],
                "ready_seconds": round(seconds, 3),
            },
        )  # fmt: skip
        return
    note = "dev: streams are made on first put; nothing leaves this machine" if node.config.node.dev else ""
    if node.insecure:
        note = ""
    click.echo(f"streamkit {__version__}  node {node.name}   {note}".rstrip())
    click.echo(f"  native   {native_url}")
    for url in [f"http://{http}"] * bool(http) + [f"https://{https}"] * bool(https):
        click.echo(f"  kinesis  {url}     AWS_ENDPOINT_URL_KINESIS={url}")
    if health:
        click.echo(f"  health   http://{health}     /live /ready /metrics")
    if node.config.cluster.url:
        zone = f"     zone {node.config.cluster.zone}" if node.config.cluster.zone else ""
        click.echo(f"  cluster  {node.config.cluster.url}     peers at {peer}{zone}")
    click.echo(f"  data     {short(directory)}  {size(described.free_bytes)} free, {described.durability_note}")
    for plan in node.insecure:
        red, plain = ("\x1b[31m", "\x1b[0m") if invocation.colored else ("", "")
        click.echo(f"{red}  INSECURE {plan.address}: anyone who reaches it can read and delete your data{plain}")
    click.echo(f"ready in {seconds:.2f} s     stop: Ctrl-C")
    sys.stdout.flush()


def _own_directory(config: Config) -> str:
    """Where --dev keeps things. Raises InvalidConfig without --dev: where data lies is not guessed for a service."""
    from streamkit.cli.doctor import default_data_directory
    from streamkit.errors import InvalidConfig

    if config.node.dev:
        return default_data_directory()
    raise InvalidConfig(
        "no data directory is named, and only --dev chooses one",
        try_="streamkit serve --data ./data, or streamkit serve --dev",
        file="", line=0, key="storage.data_dir", value="",
    )  # fmt: skip


def short(directory: str) -> str:
    """As people write it: below their home with a tilde."""
    home = str(Path.home())
    return f"~{directory.removeprefix(home)}" if directory.startswith(f"{home}/") else directory


class _Prefixed(logging.Formatter):
    """Says whose line it is: several processes share one terminal."""

    def __init__(self, inner: logging.Formatter, prefix: str) -> None:
        super().__init__()
        self._inner, self._prefix = inner, prefix

    def format(self, record: logging.LogRecord) -> str:
        return self._prefix + self._inner.format(record)


def _log_to_stderr(config: Config, prefix: str = "") -> None:
    from streamkit.observability.logs import handler

    # A person at a terminal has the banner; changes of state are for services.
    quiet = config.node.dev and config.logs.level == "info"
    level = "warning" if quiet else config.logs.level
    text_format = "text" if config.node.dev and config.logs.format == "auto" else config.logs.format
    root = logging.getLogger("streamkit")
    lines = handler(sys.stderr, format=text_format, level=level, node=config.node.name)
    as_text = text_format == "text" or (text_format == "auto" and sys.stderr.isatty())
    if prefix and as_text and lines.formatter is not None:         # JSON lines name the node already
        lines.setFormatter(_Prefixed(lines.formatter, prefix))
    root.addHandler(lines)
    root.setLevel(level.upper())
    root.propagate = False
