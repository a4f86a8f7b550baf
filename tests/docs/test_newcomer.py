"""Where somebody new stops: what is said there says what to do next."""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from streamkit import errors
from tests.cli.conftest import run_command

ROOT = Path(__file__).parents[2]


def test_a_traceback_ends_with_what_to_do() -> None:
    program = 'from streamkit import Producer\nProducer("orders", url="127.0.0.1:9").put({"id": 1}, key="a")'
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    *_, what, step = [line for line in done.stderr.splitlines() if line.startswith(("streamkit.", "try:"))]

    assert done.returncode == 1
    assert what == "streamkit.errors.ConnectionFailed: nothing answers at 127.0.0.1:9: connection refused"
    assert step == "try: streamkit serve --dev"


def test_the_step_is_said_once_however_an_error_travels() -> None:
    error = errors.StreamNotFound("there is none", try_="streamkit stream list", stream="ordres")
    copies = [pickle.loads(pickle.dumps(error)), errors.from_code(error.code, str(error), error.try_, error.facts)]

    for each in (error, *copies):
        assert traceback.format_exception_only(each)[1:] == ["try: streamkit stream list\n"]
    assert traceback.format_exception_only(errors.Closed("closed")) == ["streamkit.errors.Closed: closed\n"]


def test_an_error_is_explained_by_the_name_in_the_traceback() -> None:
    by_class, by_code = (run_command("explain", name) for name in ("ConnectionFailed", "connection_failed"))

    assert by_class.returncode == 0 and by_class.stdout == by_code.stdout


@pytest.mark.parametrize(
    ("asked", "offered"),
    [("retention_check", "storage.retention_check_seconds"), ("listen.nativ", "listen.native"),
     ("port", "listen.native.port"), ("data_dir", "storage.data_dir")],
)  # fmt: skip
def test_a_setting_is_found_without_its_section(asked: str, offered: str) -> None:
    done = run_command("config", "explain", asked)

    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[1] == f"try:   streamkit config explain {offered}"


@pytest.mark.parametrize("group", ["stream", "app", "cluster", "config", "segment"])
def test_lists_of_commands_are_not_cut_off(group: str) -> None:
    shown = run_command(group, "--help").stdout.decode()

    assert "..." not in shown.partition("commands:")[2]
    assert "usage: streamkit " + group in shown
