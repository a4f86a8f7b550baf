"""What every test runs under: hypothesis without deadlines, with many more examples for `make fuzz`; and, on
kernels of the debug build, none of their counted objects alive when the last test is over.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from streamkit._core import debug

settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile(
    "fuzz", parent=settings.get_profile("default"), max_examples=int(os.environ.get("STREAMKIT_FUZZ_EXAMPLES", "20000"))
)
settings.load_profile(os.environ.get("STREAMKIT_HYPOTHESIS_PROFILE", "default"))

LEFT = pytest.StashKey[dict[str, int]]()
CULPRITS = pytest.StashKey[list[str]]()


def live() -> dict[str, int]:
    """Counted objects that are alive now, those of each class that has any."""
    return {name: count for name, count in debug.live().items() if count}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes which test left counted objects behind, for the message at the end."""
    before = live()
    try:
        return (yield)
    finally:
        if live() != before:
            gc.collect()
            if (after := live()) != before:
                item.config.stash.setdefault(CULPRITS, []).append(f"{item.nodeid}: {before} -> {after}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the session when counted objects outlive all of its tests."""
    if not debug.ENABLED:
        return
    gc.collect()
    session.config.stash[LEFT] = live()
    if session.config.stash[LEFT] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash.get(LEFT, None)
    if left is None:
        return
    terminalreporter.section("live objects of the debug build")
    terminalreporter.write_line(f"left at the end: {left or 'none'}")
    for culprit in config.stash.get(CULPRITS, []) if left else []:
        terminalreporter.write_line(culprit)
