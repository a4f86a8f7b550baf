"""The measurements of fleets in their tiny form, and the page that is made of them."""

import json

import pytest

from benchmarks.fleets.report import markdown, write_json
from benchmarks.fleets.works import TINY, WORKS

FACTS = ("date", "cpu", "cores", "memory_gib", "kernel", "file_system", "python", "streamkit", "commit")
HOST = dict.fromkeys(FACTS, 1)


@pytest.mark.parametrize("name", WORKS)
def test_every_work_runs_in_its_tiny_form(name, tmp_path):
    rows = list(WORKS[name](TINY))

    assert len(rows) == {"balance": 3, "hand-over": 3, "scale": len(TINY.fleets)}[name]
    page = markdown(HOST, TINY, {name: rows})
    assert "A short run" in page and page.count("\n| ") == len(rows) + 1
    write_json(tmp_path / "fleets.json", HOST, TINY, {name: rows})
    assert json.loads((tmp_path / "fleets.json").read_text())["results"][name] == rows


def test_a_join_and_a_leave_move_each_shard_at_most_once():
    _, joined, left = WORKS["balance"](TINY)

    assert joined["most"] == left["most"] == 1
    assert (joined["moved"], left["moved"]) == (3, 3)
