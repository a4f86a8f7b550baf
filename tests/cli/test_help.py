"""The top of the command line: quick, complete, and plain about misuse."""

import json
import subprocess
import sys

import click
import pytest

from streamkit.cli.main import COMMANDS, load, main

HEAVY = {"rich", "lz4", "uvloop", "pyarrow", "prometheus_client", "httptools", "sqlite3", "msgspec", "asyncio"}


def modules_after(code: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(shown.stderr.split())


def test_help_imports_click_and_nothing_heavy():
    loaded = modules_after("from streamkit.cli.main import main\nmain(['--help'])")

    assert not {name.split(".")[0] for name in loaded} & (HEAVY - {"asyncio"})
    ours = {name for name in loaded if name.startswith("streamkit")}
    assert ours == {"streamkit", "streamkit.cli", "streamkit.cli.main", "streamkit.cli.invocation"}


def test_importing_the_package_loads_no_server_and_nothing_heavy():
    loaded = modules_after("import streamkit")

    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert {name for name in loaded if name.startswith("streamkit")} == {"streamkit"}


def test_clients_producers_and_consumers_load_no_server():
    loaded = modules_after("import streamkit\nfor name in streamkit.__all__: getattr(streamkit, name)")

    plain = {"streamkit.observability", "streamkit.observability.buckets", "streamkit.observability.producer_numbers"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("streamkit.") and name not in plain}
    assert not rooms & {"broker", "storage", "metadata", "http", "simulator", "node", "observability", "cli"}
    assert "prometheus_client" not in loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_each_commands_own_help_says(name):
    command = load(name)

    assert command.help.splitlines()[0] == COMMANDS[name][2]


def every_command(group: click.Group, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += every_command(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_every_command_has_help_json_and_the_shared_options(capsys):
    root = click.Group("streamkit", commands={name: load(name) for name in COMMANDS})
    paths = every_command(root, ())

    assert len(paths) > 15
    for path in paths:
        assert main([*path, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--json" in shown and "--url" in shown and "--timeout" in shown, path
        assert shown.startswith(f"usage: streamkit {' '.join(path)}"), path


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["straem"], 'error: there is no command "straem"; did you mean "stream"?'),
        (["stream", "create"], "error: missing argument 'NAME'"),
        (["version", "--nosuch"], "error: no such option '--nosuch'"),
        (["tail", "orders", "-n", "3", "--from", "latest"], "error: -n and --from exclude each other"),
    ],
)
def test_misuse_is_two_lines_and_exit_code_2(arguments, error, capsys):
    assert main(arguments) == 2
    first, second, *rest = capsys.readouterr().err.splitlines()

    assert first.startswith(error)
    assert second.startswith("try:   streamkit")
    assert rest == []


def test_misuse_with_json_is_one_object(capsys):
    assert main(["straem", "--json"]) == 2
    document = json.loads(capsys.readouterr().err)

    assert document["schema"] == "streamkit.error.v1"
    assert document["error"]["code"] == "invalid_use"
    assert document["error"]["try"] == "streamkit --help"


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_a_closed_pipe_ends_quietly():
    done = subprocess.run(
        f"{sys.executable} -m streamkit.cli explain --json | head -1", shell=True, capture_output=True, text=True,
    )  # fmt: skip

    assert json.loads(done.stdout)["schema"] == "streamkit.explanation.v1"
    assert done.stderr == ""


def test_nothing_answers_is_said_with_the_way_to_start_a_node(capsys):
    assert main(["stream", "list", "--url", "streamkit://127.0.0.1:9"]) == 1
    first, second = capsys.readouterr().err.splitlines()

    assert first.startswith("error: ") and "127.0.0.1:9" in first
    assert second.startswith("try:   ")
