"""The pytest plugin as users have it: the documentation's own examples, run by a pytest of their own."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "libraries.md").read_text()
PLUGIN = "streamkit.testing.pytest_plugin"


def run(pytester, text):
    pytester.makepyfile(text)
    installed = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    return pytester.runpytest_subprocess(*([] if installed else ["-p", PLUGIN]), "-p", "no:cacheprovider")


def test_the_examples_run_as_written(pytester):
    section = PAGE.partition("## Tests of your own programs")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)

    result = run(pytester, example)

    result.assert_outcomes(passed=example.count("def test_"))
    assert result.duration < 20


def test_clients_without_an_address_find_the_node_and_each_test_has_its_own(pytester):
    result = run(
        pytester,
        """
        import os
        import pytest
        from streamkit import Client, Producer

        urls = []

        @pytest.mark.parametrize("number", [1, 2])
        def test_one(streamkit_node, number):
            assert Client().list_streams() == []
            with Producer("orders") as producer:
                producer.put_and_wait(b"x", key="a")
            assert [stream.name for stream in Client().list_streams()] == ["orders"]
            urls.append(os.environ["STREAMKIT_URL"])

        def test_two():
            assert len(set(urls)) == 2 and "STREAMKIT_URL" not in os.environ
        """,
    )

    result.assert_outcomes(passed=3)


def test_the_plugin_is_announced_to_pytest():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["project"]["entry-points"]["pytest11"] == {"streamkit": PLUGIN}
