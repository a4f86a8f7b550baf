"""What the producer is to do is shown somewhere: a test or a benchmark names each acceptance test of its design."""

import re

from tests.tidy.sources import ROOT

PRODUCER = range(1, 17)
NAMED = re.compile(r"Acceptance: producer\.md ((?:D12\.\d+(?:, )?)+)")


def test_every_acceptance_test_of_the_producer_is_shown_somewhere():
    shown = set()
    for folder in ("tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for numbers in NAMED.findall(path.read_text(encoding="utf-8")):
                shown |= {int(number) for number in re.findall(r"D12\.(\d+)", numbers)}

    assert sorted(set(PRODUCER) - shown) == []
