"""Children: begun anew when they end, ended when asked, and none outlives the one that started them."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from streamkit.errors import Unavailable
from streamkit.runtime.children import Children

READY = "print('here', flush=True)"
STAYS = f"{READY}; import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {STAYS}"
OBEYS = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {STAYS}"


def python(code):
    return (sys.executable, "-c", code)


def children(*codes, stop_seconds=10.0):
    """One child a code; each life after the first stays."""
    made = Children(
        [f"c{n}" for n in range(len(codes))],
        lambda child: python(codes[int(child.name[1:])] if child.lives == 0 else STAYS),
        on_ready=lambda child: said.append((child.name, child.lives, child.line)), stop_seconds=stop_seconds,
    )
    said: list[tuple[str, int, bytes]] = []
    return made, said


def gone(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():                 # noqa: ASYNC110 - it is about other processes
            await asyncio.sleep(0.01)


async def test_all_are_ready_and_all_end():
    made, said = children(STAYS, OBEYS)
    await made.start()
    ids = [child.process_id for child in made.children]

    assert sorted(said) == [("c0", 1, b"here\n"), ("c1", 1, b"here\n")]
    assert await made.stop() == 0
    assert all(map(gone, ids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_one_that_ends_is_begun_anew_and_the_others_are_left_alone(number):
    made, said = children(STAYS, STAYS)
    await made.start()
    first, other = (child.process_id for child in made.children)
    os.kill(first, number)
    await until(lambda: len(said) == 3)

    assert said[2][:2] == ("c0", 2)
    assert made.children[1].process_id == other
    assert made.children[0].line_before == b"here\n"
    assert await made.stop() == 0
    assert gone(first)


async def test_one_that_cannot_begin_ends_the_others_and_says_so():
    made, _ = children("raise SystemExit(2)", STAYS)

    with pytest.raises(Unavailable, match="c0 ended with exit code 2 before it was ready"):
        await made.start()
    assert all(child.process is None or child.process.returncode is not None for child in made.children)


async def test_one_that_does_not_listen_is_killed_after_its_time():
    made, _ = children(DEAF, stop_seconds=0.2)
    await made.start()
    process_id = made.children[0].process_id

    assert await made.stop() == 1
    assert gone(process_id)


async def test_one_that_is_stopped_is_killed_after_its_time():
    made, _ = children(STAYS, stop_seconds=0.2)
    await made.start()
    process_id = made.children[0].process_id
    os.kill(process_id, signal.SIGSTOP)
    await until(lambda: state_of(process_id) == "T")       # of two signals that wait, the other would be heard first

    assert await made.stop() == 1


def test_a_parent_that_is_killed_leaves_none_behind():
    child = "from streamkit.runtime.children import end_with; import os, sys; end_with(int(sys.argv[1])); " + STAYS
    parent = (
        "import os, subprocess, sys, time\n"
        f"made = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdout=subprocess.PIPE)\n"
        "made.stdout.readline(); print(made.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(python(parent), stdout=subprocess.PIPE, text=True)
    process_id = int(process.stdout.readline())
    assert not gone(process_id)
    process.kill()
    process.wait()

    # Whoever takes over the orphan reaps it; a zombie has ended.
    asyncio.run(until(lambda: state_of(process_id) == "Z"))


def state_of(process_id):
    """Its letter in /proc; "Z" also when there is no such process any more."""
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_child_whose_parent_is_gone_already_does_not_begin():
    code = "from streamkit.runtime.children import end_with; end_with(1); print('begun')"
    done = subprocess.run(python(code), capture_output=True, check=False)

    assert (done.returncode, done.stdout) == (1, b"")
