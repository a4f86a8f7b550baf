"""A listener on the loop that nodes run on, in a thread of its own, and programs that talk to it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import shutil
import subprocess
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from streamkit.http.exchange import HttpConfig
from streamkit.http.listener import HttpListener
from streamkit.runtime.real import LoopThread, RealNetwork
from tests.http.worlds import echo

INSTALL = {
    "nghttp": "run `sh .ci/http-tools .venv`, or `apt-get install nghttp2-client` as root",
    "h2load": "run `sh .ci/http-tools .venv`, or `apt-get install nghttp2-client` as root",
    "curl": "run `apt-get install curl` as root",
    "node": "run `apt-get install nodejs` as root, or unpack Node 18 or newer and put it on the PATH",
}


@contextlib.contextmanager
def serving(handler=echo, tls=None, **config):
    """The listener; requests are answered on another thread."""
    thread = LoopThread("http-test")
    listener = thread.run(HttpListener.open(RealNetwork(), "127.0.0.1:0", handler, HttpConfig(**config), tls))
    try:
        yield listener
    finally:
        thread.run(listener.close())
        thread.stop()


def program(name):
    for found in (Path(sys.prefix, "bin", name), shutil.which(name)):
        if found and Path(found).exists():
            return str(found)
    raise RuntimeError(f"there is no {name}: {INSTALL[name]}")


def run(name, *arguments, seconds=60):
    """What the program wrote. It fails when the program does."""
    done = subprocess.run([program(name), *map(str, arguments)], capture_output=True, timeout=seconds, check=False)
    assert done.returncode == 0, (done.stdout[-2000:] + done.stderr[-2000:]).decode(errors="replace")
    return done.stdout


def certificate(folder, *, name="localhost"):
    """Paths of a certificate for this machine and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return str(paths[0]), str(paths[1])
