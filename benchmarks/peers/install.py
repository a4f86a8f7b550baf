"""`python -m benchmarks.peers.install [SYSTEM…]`: peers into build/peers; nothing outside it changes.

One that cannot be had is said and left out; the rest are installed all the same.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.peers.packages import install_python
from benchmarks.peers.systems import SYSTEMS


def main() -> int:
    words = sys.argv[1:]
    print("Python packages of the extra `bench` …", flush=True)
    install_python()
    for system in SYSTEMS:
        name = system.variants[0].name
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        print(f"{name} …", flush=True)
        try:
            system.install()
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", "") or str(error)
            print(f"{name} cannot be had: {' '.join(said.split())[-300:]}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
