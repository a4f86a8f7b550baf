"""The loading process, from both ends: whoever measures starts it with a request, and it answers a JSON line a work.

It is a process of its own so that its CPU seconds are its own. A work that fails says so in its line; the next one is
tried all the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.peers.system import ROOT

W = TypeVar("W")


def load(program: str, request: dict[str, Any], python: str | Path = sys.executable) -> list[dict[str, Any]]:
    """What the module `program` says of each work that the request names, also of those that it never got to."""
    seconds_max = request["work_seconds_max"] * len(request["works"])
    try:
        done = subprocess.run(
            [str(python), "-m", program, json.dumps(request)],
            capture_output=True, text=True, timeout=seconds_max, cwd=ROOT, check=False,
        )  # fmt: skip
        said, why = done.stdout, done.stderr.strip()[-300:]
    except subprocess.TimeoutExpired as expired:
        said, why = (expired.stdout or b"").decode(), f"no end after {seconds_max:.0f} s"
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    missing = [name for name in request["works"] if name not in {line["work"] for line in lines}]
    return lines + [{"work": name, "error": f"the client ended: {why}"} for name in missing]


async def do_all(
    known: Mapping[str, Callable[[W], Awaitable[dict[str, Any]]]], works: W, request: dict[str, Any]
) -> None:
    """In the loading process: every work that the request names, a printed line each."""
    gc.freeze()
    for name in request["works"]:
        started = time.perf_counter()
        try:
            result = await asyncio.wait_for(known[name](works), request["work_seconds_max"])
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        line = {"work": name, **result, "took_seconds": round(time.perf_counter() - started, 2)}
        print(json.dumps(line), flush=True)
