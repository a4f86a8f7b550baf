"""Where peers are installed, and the ordinary clients of registries that put them there.

Everything lands in build/peers. Debian packages are unpacked there, so that no service starts and nothing outside
changes; they need the libraries of the release that they come from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from benchmarks.peers.system import PEERS, ROOT

DEBIAN = PEERS / "debian"
PYTHON = PEERS / "python" / "bin" / "python"


def run(*command: str | Path, directory: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=directory, check=True, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout


def install_debian(package: str) -> None:
    """The package and what it depends on and this machine lacks, unpacked below build/peers/debian/root."""
    simulated = run("apt-get", "install", "--simulate", "--no-install-recommends", package)
    names = [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ")]
    if not names:                                   # installed on this machine already: unpacked all the same
        names = [package]
    archives = DEBIAN / "archives" / package
    shutil.rmtree(archives, ignore_errors=True)
    archives.mkdir(parents=True)
    run("apt-get", "download", *names, directory=archives)
    for archive in sorted(archives.glob("*.deb")):
        run("dpkg", "-x", archive, DEBIAN / "root")


def debian_environment() -> dict[str, str]:
    """Finds the libraries and programs of unpacked packages before those of the machine."""
    root = DEBIAN / "root"
    libraries = [str(path) for path in sorted((root / "usr" / "lib").glob("*-linux-gnu"))]
    libraries += [str(path) for path in sorted((root / "lib").glob("*-linux-gnu"))]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": f"{root / 'usr' / 'bin'}:{os.environ.get('PATH', '')}",
    }


def install_python() -> None:
    """An environment of its own with the extra `bench` and what streamkit needs; streamkit itself is the tree's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if not PYTHON.exists():
        run(sys.executable, "-m", "venv", PEERS / "python")
    wanted = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-q", *wanted)


def python_version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def missing_python(*distributions: str) -> str:
    """Empty when all are there."""
    missing = [name for name in distributions if not python_version(name)]
    return f"Python package {', '.join(missing)} is not installed: make bench-peers-install" if missing else ""


def missing_program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not on this machine"


def refused(variant: str) -> Path:
    """What the registry said when a system could not be had; the file is there only then."""
    return PEERS / "refused" / variant


def install_npm(package: str) -> None:
    folder = PEERS / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n')
    run("npm", "install", "--no-audit", "--no-fund", package, directory=folder)


def npm_version(package: str) -> str:
    import json

    described = json.loads((PEERS / package / "node_modules" / package / "package.json").read_text())
    return str(described["version"])
