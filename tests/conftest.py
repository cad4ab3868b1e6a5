"""What all tests tell at the end of a run: how often which faults were tried, beside what is promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

PROMISED = {
    "kills at a random instant of a save": 1200,
    "kills at a random instant of saves behind training": 50,
    "kills at a random instant of saves that prune": 50,
    "kills at a random instant of a load": 50,
    "damaged files refused": 1600,
    "protocols without a step found out": 10,
    "frozen ranks named": 50,
    "seconds of stalls without a false alarm": 1800,
}
"""By docs/checkpoints.md and docs/errors.md; what else is counted has no number to come to."""
COUNTS = pytest.StashKey[Counter[str]]()

Tally = Callable[[str, float], None]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = Counter()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """`tally(what, times)` once it has passed."""

    def add(what: str, times: float) -> None:
        request.config.stash[COUNTS][what] += round(times)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.stash[COUNTS]:
        return
    terminalreporter.section("faults that were tried")
    terminalreporter.line("    tried  promised")
    for what, count in sorted(config.stash[COUNTS].items()):
        terminalreporter.line(f"{count:>9} {PROMISED.get(what, ''):>9}  {what}")
