"""The error catalogue covers every code and keeps the rules for messages to humans."""

import json

import pytest

from streamkit import errors
from streamkit.cli import failures
from streamkit.cli.catalogue import ENTRIES
from streamkit.cli.invocation import Invocation
from streamkit.cli.main import main


def test_every_code_has_a_page_and_every_page_a_code():
    assert set(ENTRIES) - {"system"} == set(errors.BY_CODE)


@pytest.mark.parametrize("code", ENTRIES)
def test_an_example_is_printed_as_two_plain_lines(code, capsys):
    entry = ENTRIES[code]
    error = errors.BY_CODE.get(code, errors.StreamkitError)(entry.example)

    assert failures.report(error, Invocation()) in (1, 2)
    first, second, *rest = capsys.readouterr().err.splitlines()

    assert first == f"error: {entry.example}"
    assert second == f"try:   {entry.step}" or code == "system"
    assert rest == []
    text = (first + second + entry.why).lower()
    assert not any(word in text for word in ("please", "oops", "!", "invalid input", "0x", "sorry"))
    assert not entry.example[0].isupper()


@pytest.mark.parametrize("code", ENTRIES)
def test_explain_says_what_why_and_what_next(code, capsys):
    assert main(["explain", code]) == 0
    shown = capsys.readouterr().out

    assert ENTRIES[code].why in shown and ENTRIES[code].step in shown


def test_explain_suggests_a_near_miss(capsys):
    assert main(["explain", "lease_lots"]) == 2
    assert "did you mean lease_lost?" in capsys.readouterr().err


def test_explain_lists_all_codes_as_json_lines(capsys):
    assert main(["explain", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [item["code"] for item in found] == list(ENTRIES)
    assert all(next(iter(item)) == "schema" for item in found)


def test_a_defect_names_its_incident_and_hides_the_traceback(capsys):
    assert failures.report(KeyError("secret"), Invocation()) == 1
    first, second = capsys.readouterr().err.splitlines()

    assert first.startswith("error: this is a defect in streamkit (incident ")
    assert "--debug" in second


def test_errors_about_what_was_asked_exit_2_and_others_1(capsys):
    assert failures.report(errors.InvalidRequest("shards must be 1..10000, got 0"), Invocation()) == 2
    assert failures.report(errors.StreamNotFound("no"), Invocation()) == 1
    assert failures.report(PermissionError(13, "Permission denied", "/var/lib/x"), Invocation()) == 1
    assert "error: /var/lib/x: permission denied" in capsys.readouterr().err
