"""A real PostgreSQL for tests: a server of its own on a free loopback port, in a folder, with a bound on its memory.

    with Postgres() as postgres:
        psycopg.connect(postgres.dsn)
        postgres.kill(); postgres.start()         # SIGKILL for all of it; the same data on the same port

The server refuses to run as root: then it runs as Debian's user `postgres`, in a folder of that user.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from tests.end_to_end.processes import free_port

_READY_SECONDS = 30
_ADDRESS_KIB_MAX = 2 << 20
_SETTINGS = {
    "listen_addresses": "127.0.0.1", "shared_buffers": "16MB", "max_connections": "40", "max_wal_size": "64MB",
    "log_min_messages": "warning", "autovacuum": "off",
}  # fmt: skip


def _program(name):
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    if found := shutil.which(name):
        return found
    raise RuntimeError("there is no PostgreSQL: run `sh .ci/test-packages`, or `apt-get install postgresql` as root")


class Postgres:
    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="streamkit-postgres-"))
        self.port = free_port()
        self.dsn = f"host=127.0.0.1 port={self.port} user=streamkit dbname=postgres"
        self.process = None
        self._user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._run(_program("initdb"), "--pgdata", str(self.folder / "data"), "--username", "streamkit", "--auth",
                  "trust", "--no-sync", "--encoding", "UTF8", "--no-locale")  # fmt: skip

    def start(self):
        """Returns when it answers."""
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        arguments = ["sh", "-c", f'ulimit -v {_ADDRESS_KIB_MAX} && exec "$0" "$@"', _program("postgres"), "-D",
                     str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder), *settings]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.folder,
                **self._identity(),
            )
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")
                    self.close()
                    raise RuntimeError(f"PostgreSQL did not start:\n{log[-2000:]}") from error
                time.sleep(0.02)               # between two tries to connect

    def kill(self):
        """SIGKILL, for the server and its children; what it had not written is lost."""
        self._end(signal.SIGKILL)

    def close(self):
        self._end(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number):
        if self.process is not None and self.process.poll() is None:
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)        # children are in groups of their own, and see it end
            else:
                self.process.send_signal(number)
            self.process.wait(10)

    def _run(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self._identity())
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-2000:]}")

    def _identity(self):
        user = self._user
        return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.close()
