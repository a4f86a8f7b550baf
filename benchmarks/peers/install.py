"""`python -m benchmarks.peers.install [SYSTEM…]`: peers into build/peers; nothing outside it changes.

One that cannot be had is said and left out; the rest are installed all the same.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.peers.packages import install_python, refused
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
            said = " ".join((getattr(error, "stderr", "") or str(error)).split())[-300:]
            print(f"{name} cannot be had: {said}", file=sys.stderr, flush=True)
            refused(system.variants[0].key).parent.mkdir(parents=True, exist_ok=True)
            refused(system.variants[0].key).write_text(said)
        else:
            refused(system.variants[0].key).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
