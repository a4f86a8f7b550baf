"""Each thing that the libraries must do is named by a test or a benchmark; docs/acceptance.md lists them."""

from __future__ import annotations

from docs import acceptance


def test_each_criterion_is_shown_by_a_test_or_a_benchmark():
    assert acceptance.unshown() == []


def test_no_test_names_a_criterion_that_is_not_there():
    assert acceptance.unknown() == []
