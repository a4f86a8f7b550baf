"""streamkit kcl: record processors in any language, from the shell, with the MultiLangDaemon's properties file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.children import THIRD, noted, python_child, said, shell_child, until_noted


def kcl(served, log: Path, *arguments: str) -> subprocess.Popen[str]:
    with log.open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "streamkit.cli", "kcl", *arguments, "--url", served.url],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return printed



def test_a_properties_file_runs_as_it_is_and_goes_on_from_its_checkpoints(served, tmp_path):
    served.run("stream", "create", "kcl-orders", "--shards", "2")
    served.run("put", "kcl-orders", "--lines", "--codec", "text", stdin="".join(f"{n}\n" for n in range(40)))
    properties, log = tmp_path / "app.properties", tmp_path / "log"
    properties.write_text(
        f"executableName = {' '.join(python_child(tmp_path, THIRD))}\n"
        "streamName = kcl-orders\napplicationName = kcl-cli\ninitialPositionInStream = TRIM_HORIZON\n"
        "processingLanguage = python/3\nregionName = eu-north-1\nAwsCredentialsProvider = any\nfrobnicate = 1\n"
    )

    process = kcl(served, log, "--properties", str(properties))
    until_noted(tmp_path, range(40))
    ended(process)
    served.run("put", "kcl-orders", "--lines", "--codec", "text", stdin="".join(f"{n}\n" for n in range(40, 60)))
    process = kcl(served, log, "--properties", str(properties), "--json")
    until_noted(tmp_path, range(60))
    printed = ended(process)

    assert sorted(number for _, number in noted(tmp_path)) == list(range(60))
    assert said(tmp_path) == ["shutdown_requested", "lease_lost"] * 4 or said(tmp_path).count("lease_lost") == 4
    assert '"records":20' in printed.replace(" ", "")
    told = log.read_text()
    assert told.count("says what means nothing here: frobnicate") == 2 and "regionName" not in told
    (described,) = served.json("app", "describe", "kcl-cli")
    assert sum(lease["lag_records"] for lease in described["leases"]) == 0


def test_options_go_before_the_file(served, tmp_path):
    served.run("stream", "create", "kcl-shell", "--shards", "1")
    served.run("put", "kcl-shell", "--lines", "--codec", "text", stdin="".join(f"{n}\n" for n in range(9)))
    properties = tmp_path / "app.properties"
    properties.write_text("streamName = another\napplicationName = another\ninitialPositionInStream = LATEST\n")

    process = kcl(
        served, tmp_path / "log", "--properties", str(properties), "--stream", "kcl-shell", "--app", "kcl-shell-app",
        "--from", "trim_horizon", "--exec", " ".join(shell_child(tmp_path)), "--worker", "w7", "-q",
    )  # fmt: skip
    until_noted(tmp_path, range(9))
    (described,) = served.json("app", "describe", "kcl-shell-app")
    ended(process)

    assert described["workers"] == ["w7"] and said(tmp_path) == ["shutdown_requested", "lease_lost"]
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--stream"),
        (("--stream", "s"), "--app"),
        (("--stream", "s", "--app", "a"), "--exec"),
        (("--stream", "s", "--app", "a", "--exec", "true"), "--from"),
        (("--stream", "s", "--app", "a", "--exec", "true", "--from", "shardId-000000000000:7"), "--from"),
    ],
)
def test_what_is_not_said_anywhere_is_misuse(served, arguments, word):
    first, _ = served.fail("kcl", *arguments, exit_code=2)

    assert first.startswith("error: ") and word in first


def test_a_file_that_makes_no_sense_is_misuse(served, tmp_path):
    properties = tmp_path / "app.properties"
    properties.write_text("initialPositionInStream = SOMEWHERE\n")

    first, second = served.fail("kcl", "--properties", str(properties), exit_code=2)

    assert "initialPositionInStream must be" in first and second.startswith("try: ")
