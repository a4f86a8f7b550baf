"""The README works as written: its blocks run against a node started as it says, its links and targets exist."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ServedNode, start_serve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))


@pytest.fixture(scope="module")
def development_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedNode]:
    node = start_serve(tmp_path_factory.mktemp("readme") / "data", "--dev")
    yield node
    node.process.terminate()
    assert node.process.wait(30) == 0


def run_block(block: str, directory: Path, url: str = "", until: tuple[str, ...] = ()) -> str:
    """What it printed. until: it runs for ever; interrupted with Ctrl-C once it printed these lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", block], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory,
        env={**os.environ, "STREAMKIT_URL": url, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    printed = ""
    try:
        while not all(line in printed for line in until) and (line := process.stdout.readline()):
            printed += line
        if until:
            process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert all(line in printed for line in until), errors
    assert process.returncode in ((0, 130, -signal.SIGINT) if until else (0,)), errors
    return printed + out


def test_there_are_three_blocks_and_each_has_its_test():
    assert len(BLOCKS) == 3


def test_the_first_screen_works_in_sync_form(development_node, tmp_path):
    printed = run_block(BLOCKS[0], tmp_path, development_node.url, until=("bill 1: 42.5",))

    assert "bill 1: 42.5\n" in printed


def test_the_first_screen_works_in_async_form(development_node, tmp_path):
    printed = run_block(BLOCKS[1], tmp_path, development_node.url, until=("audit 2: 7.0",))

    assert re.search(r"^\d{56}$", printed, re.MULTILINE)


def test_the_embedded_form_works_and_its_directory_can_be_served(tmp_path):
    printed = run_block(BLOCKS[2], tmp_path)
    node = start_serve(tmp_path / "data")
    try:
        (record,) = node.json("tail", "orders")
    finally:
        node.process.terminate()
        node.process.wait(30)

    assert printed == "customer-7 {'id': 3, 'total': 1.0}\n"
    assert (record["key"], record["data"]) == ("customer-7", {"id": 3, "total": 1.0})


def test_the_two_commands_after_the_block_work(development_node):
    development_node.run("put", "shown", "x", "--key", "a")

    assert "x" in development_node.run("tail", "shown")
    assert development_node.run("lag").startswith("APPLICATION")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_decision_page_is_in_the_index():
    decisions = ROOT / "docs" / "decisions"
    index = (decisions / "README.md").read_text()
    pages = sorted(decisions.glob("[0-9]*.md"))

    assert pages
    for page in pages:
        title = page.read_text().splitlines()[0].removeprefix(f"# {page.name[:4]}. ")
        assert f"| [{page.name[:4]}]({page.name}) | {title} |" in index, page.name


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make ([a-z][a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))

    assert {"demo", "test", "bench", "simulate", "lint"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_test_command_of_the_readme_is_what_ci_runs():
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test " in README


def test_every_room_is_in_the_readmes_table():
    rooms = {path.parent.name for path in (ROOT / "streamkit").glob("*/__init__.py")}

    assert {room for room in rooms if f"`{room}`" not in README} == set()


def test_generated_pages_are_what_the_program_says():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip

    assert done.returncode == 0, f"{done.stdout}: run python docs/generate.py"
