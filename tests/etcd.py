"""A real etcd for tests: one member or three, on free loopback ports, in a folder, with a bound on its memory.

    async with Etcd(tmp_path) as etcd:            # or `with`
        etcd.endpoints                            # ["127.0.0.1:2379"]
        etcd.url                                  # "etcd://127.0.0.1:2379/streamkit"
        etcd.kill(); await etcd.restart()         # SIGKILL; the same data on the same ports
        etcd.stop_process(); etcd.continue_process()       # SIGSTOP, SIGCONT
        await etcd.compact()                      # forget the history of every key
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.end_to_end.processes import free_port

_READY_SECONDS = 30
_ADDRESS_KIB_MAX = 4 << 20
_QUOTA_BYTES = 128 << 20


def etcd_program():
    for found in (Path(sys.prefix, "bin", "etcd"), shutil.which("etcd")):
        if found and Path(found).exists():
            return str(found)
    raise RuntimeError("there is no etcd: run `sh .ci/etcd .venv`, or `apt-get install etcd-server` as root")


def _free_ports(count):
    ports = set()
    while len(ports) < count:
        ports.add(free_port())             # a member comes back on its own
    return sorted(ports)


class _Member:
    def __init__(self, name, folder, port, peer_port, tls):
        self.name, self.folder, self.tls = name, folder, tls
        self.port, self.peer_url = port, f"http://127.0.0.1:{peer_port}"
        self.process = None

    def start(self, cluster):
        client = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        arguments = [
            "sh", "-c", f'ulimit -v {_ADDRESS_KIB_MAX} && exec "$0" "$@"', etcd_program(),
            "--name", self.name, "--data-dir", str(self.folder / self.name),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", cluster, "--quota-backend-bytes", str(_QUOTA_BYTES), "--log-level", "error",
        ]
        if self.tls:
            arguments += ["--cert-file", self.tls["certificate"], "--key-file", self.tls["key"],
                          "--trusted-ca-file", self.tls["ca"], "--client-cert-auth"]  # fmt: skip
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine.replace("aarch64", "arm64")},
            )

    def signal(self, number):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self):
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)


class Etcd:
    """members: 1, or 3 for a cluster that goes on without one of them. tls: paths of certificate, key and ca (PEM), for
    clients; who has no certificate of that authority's is turned away."""

    def __init__(self, folder, members=1, tls=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = _free_ports(2 * members)
        self.members = [_Member(f"m{i}", self.folder, *ports[2 * i : 2 * i + 2], tls) for i in range(members)]
        self.endpoints = [f"127.0.0.1:{member.port}" for member in self.members]
        self.url = f"etcd://{','.join(self.endpoints)}/streamkit"

    def start(self):
        """Those members that do not run; returns when all answer."""
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            if member.process is None or member.process.poll() is not None:
                member.start(cluster)
        deadline = time.monotonic() + _READY_SECONDS
        for member in self.members:
            while not self._healthy(member):
                if member.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / f"{member.name}.log").read_text(errors="replace")
                    self.close()
                    raise RuntimeError(f"etcd did not start:\n{log[-2000:]}")
                time.sleep(0.02)

    def _healthy(self, member):
        context = None
        if member.tls:
            context = ssl.create_default_context(cafile=member.tls["ca"])
            context.load_cert_chain(member.tls["certificate"], member.tls["key"])
        url = f"{'https' if member.tls else 'http'}://127.0.0.1:{member.port}/health"
        try:
            with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                return json.load(answer)["health"] == "true"
        except (OSError, ValueError):
            return False

    def kill(self, index=None):
        """SIGKILL for one member, or all."""
        for member in self._chosen(index):
            member.end()

    async def restart(self):
        await asyncio.to_thread(self.start)

    def stop_process(self, index=None):
        """SIGSTOP: it is there, and does not answer."""
        for member in self._chosen(index):
            member.signal(signal.SIGSTOP)

    def continue_process(self, index=None):
        for member in self._chosen(index):
            member.signal(signal.SIGCONT)

    async def compact(self):
        await asyncio.to_thread(self._compact)

    def _compact(self):
        answer = self._post("/v3/kv/range", {"key": base64.b64encode(b"x").decode()})
        self._post("/v3/kv/compaction", {"revision": answer["header"]["revision"], "physical": True})

    def _post(self, path, body):
        request = urllib.request.Request(f"http://{self.endpoints[0]}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def close(self):
        for member in self.members:
            member.end()

    def _chosen(self, index):
        return self.members if index is None else [self.members[index]]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.close()

    async def __aenter__(self):
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *error):
        await asyncio.to_thread(self.close)
