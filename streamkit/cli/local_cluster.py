"""`streamkit serve --replicas N` and `--workers N`: a cluster on this machine, each node a process of its own.

    DIR/node-1 … DIR/node-N   a data directory each
    DIR/cluster.sqlite        where they agree

One process starts them, restarts what ends and ends them all; it holds no records. Read `LocalCluster.run`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation
from streamkit.cli.rendering import emit, note, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkit.config import Config
    from streamkit.runtime.children import Child

_STORE_FILE = "cluster.sqlite"
_PORTS_APART = 10                          # the first node's ports are the usual ones, the next one's 7450, 7451 …
_FAILED_STARTS_MAX = 2                     # after so many, a free port is taken where any would have done at first


class LocalCluster:
    """Nodes with consecutive ports, or free ones. `run` once."""

    def __init__(
        self, invocation: Invocation, config: Config, directory: str, path: str | None, replicas: int | None,
        workers: int | None,
    ) -> None:  # fmt: skip
        """path: of the configuration file that the nodes read, too. One of replicas and workers. Raises InvalidUse."""
        from streamkit.errors import InvalidUse

        if replicas is not None and workers is not None:
            raise InvalidUse(
                "--replicas and --workers exclude each other: copies of every shard, or shards shared out",
                try_="streamkit serve --replicas 3", options="--replicas --workers",
            )
        if config.cluster.url:
            raise InvalidUse(
                "--replicas and --workers run a whole cluster on this machine, and --cluster joins another one",
                try_="set cluster.replicas for the copies of new streams", options="--cluster",
            )
        self._invocation = invocation
        self._config = config
        self._directory = Path(directory).resolve()
        self._path = path
        self._copies = replicas if replicas is not None else 1
        self._what = "replicas" if replicas is not None else "workers"
        self._count: int = replicas or workers or 1
        self._names = [f"node-{number}" for number in range(1, self._count + 1)]
        self._ready: dict[str, dict[str, Any]] = {}
        self._announced = False

    def run(self) -> int:
        """Until asked to stop; the exit code."""
        self._prepare()
        return asyncio.run(self._run())

    async def _run(self) -> int:
        from streamkit.runtime.children import Children
        from streamkit.runtime.shutdown import StopSignal

        began = time.perf_counter()
        children = Children(
            self._names, self._command, on_ready=self._on_ready,
            stop_seconds=self._config.node.drain_seconds + 10.0,
        )  # fmt: skip
        async with StopSignal() as stop:
            starting = asyncio.ensure_future(children.start())
            asked = asyncio.ensure_future(stop.wait())
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._announce(time.perf_counter() - began)
                await asked
            else:
                starting.cancel()
                await asyncio.wait({starting})
            return 1 if await children.stop() else 0

    # -- the nodes -----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        from streamkit.errors import InvalidConfig

        directory = self._directory
        there = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
        nodes = [name for name in there if re.fullmatch(r"node-\d+", name)]
        wrong = ""
        if there and not nodes and there != ["lost+found"]:
            wrong = f"{directory} holds {there[0]!r}, and not the nodes of a cluster"
            step = "name an empty directory; a single node's data stays with streamkit serve --data"
        elif more := sorted(set(nodes) - set(self._names)):
            wrong = f"{directory} holds {len(nodes)} nodes, and {more[0]} would not be started"
            step = f"streamkit serve --{self._what} {len(nodes)} --data {directory}"
        if wrong:
            raise InvalidConfig(
                wrong, try_=step, file="", line=0, key="storage.data_dir", value=str(directory),
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["STREAMKIT_CLUSTER__REPLICAS"] = str(self._copies)

    def _command(self, child: Child) -> Sequence[str]:
        """The same ports in each life: clients find a node again where it was."""
        from streamkit.runtime.children import own_program

        config, name = self._config, child.name
        index = self._names.index(name)
        before = self._ready.get(name, {}) if child.failures < _FAILED_STARTS_MAX else {}
        options = {
            "--node-id": name,
            "--data": str(self._directory / name),
            "--cluster": f"sqlite://{self._directory / _STORE_FILE}",
            "--supervised-by": str(os.getpid()),
            "--listen": config.listen.host,
            "--port": self._port(config.listen.native.port, index, before.get("native")),
            "--http-port": self._port(config.listen.http.port, index, before.get("http")),
            "--https-port": self._port(config.listen.https.port, index, before.get("https")),
            "--health-port": self._port(config.listen.health.port, index, before.get("health")),
            "--peer-port": str(_port_of(before.get("peer"))),
        }
        https = config.listen.https
        if https.certificate_file:
            options |= {"--certificate": https.certificate_file, "--certificate-key": https.key_file}
        if https.host:
            options["--https-host"] = https.host
        if self._path:
            options["--config"] = self._path
        flags = ["--json"] if self._invocation.json else []
        flags += ["--dev"] if config.node.dev else []
        flags += ["--accept-insecure"] if config.listen.accept_insecure else []
        return [*own_program(), "serve", *(word for option in options.items() for word in option), *flags]

    def _port(self, first: int, index: int, before: str | None) -> str:
        """The node's port of one kind: `first` and then ten apart, so that kinds never meet; of 0 the one it had."""
        return str(first + _PORTS_APART * index if first else _port_of(before))

    def _on_ready(self, child: Child) -> None:
        import msgspec

        facts: dict[str, Any] = msgspec.json.decode(child.line)
        facts.pop("schema", None)
        self._ready[child.name] = facts
        if not self._announced:
            return
        if self._invocation.json:
            emit("node", facts)
        else:
            note(f"{child.name} is back: {facts['native']}   pid {facts['pid']}")

    # -- what is said --------------------------------------------------------------------------------------

    def _announce(self, seconds: float) -> None:
        from streamkit import __version__
        from streamkit.cli.serve import short

        self._announced = True
        nodes = [self._ready[name] for name in self._names]
        if self._invocation.json:
            emit(
                "cluster",
                {
                    "version": __version__, "pid": os.getpid(), "replicas": self._copies, "native": nodes[0]["native"],
                    "store": f"sqlite://{self._directory / _STORE_FILE}", "data": str(self._directory),
                    "nodes": nodes, "ready_seconds": round(seconds, 3),
                },
            )  # fmt: skip
            return
        kept = "a copy of every record on each" if self._copies > 1 else "shards shared out among them, one copy"
        click.echo(f"streamkit {__version__}  {len(nodes)} nodes on this machine, {kept}")
        for facts in nodes:
            faces = "".join(f"   {name} {facts[name]}" for name in ("http", "https", "health") if facts[name])
            click.echo(f"  {facts['node']:<8} {facts['native']}{faces}   pid {facts['pid']}")
        free = size(shutil.disk_usage(self._directory).free)
        click.echo(f"  data     {short(str(self._directory))}  {free} free")
        if insecure := [address for facts in nodes for address in facts["insecure"]]:
            red, plain = ("\x1b[31m", "\x1b[0m") if self._invocation.colored else ("", "")
            for address in insecure:
                click.echo(f"{red}  INSECURE {address}: anyone who reaches it can read and delete your data{plain}")
        click.echo(f"ready in {seconds:.2f} s     stop: Ctrl-C     look: streamkit cluster status")
        sys.stdout.flush()


def _port_of(url: str | None) -> str:
    return url.rpartition(":")[2] if url else "0"
