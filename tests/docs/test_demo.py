"""The demonstration, in small: real processes, a real kill, a table that must be right."""

import subprocess
import sys
from pathlib import Path

from examples.flights.data import aircraft, flights, totals_of

ROOT = Path(__file__).parents[2]


def test_the_file_holds_every_flight_of_the_month():
    all_flights = flights()

    assert len(all_flights) == 27_004
    assert [flight["row"] for flight in all_flights] == list(range(1, 27_005))
    assert {(flight["year"], flight["month"]) for flight in all_flights} == {(2013, 1)}
    assert sum(flight["dep_delay"] is None for flight in all_flights) == 521
    assert all(aircraft(flight) for flight in all_flights)
    assert sum(totals.flights for totals in totals_of(all_flights).values()) == 27_004


def test_totals_survive_a_killed_worker():
    done = subprocess.run(
        [sys.executable, "-m", "examples.flights", "--flights", "3000"],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3,000 of 3,000 counted, 0 lost, 0 stored twice" in done.stdout
    assert "take-over" in done.stdout and "none seen" not in done.stdout
    assert "serve --dev" in done.stdout
