from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("training", "traces", "refusals")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=int(os.environ.get("ALIQUOT_KILLS", "5")),
        help="how many jobs lose a rank at a random instant, per transport (the promise is 50 of 50)",
    )
    parser.addoption("--freezes", type=int, default=1, help="how many jobs lose a rank that is stopped by a signal")
    parser.addoption("--stall-seconds", type=float, default=2.5, help="for how long ranks stall, now and then")
    parser.addoption("--table", type=Path, help="where to write which models trained, such as docs/models.md")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))


@pytest.fixture
def freezes(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--freezes"))


@pytest.fixture
def stall_seconds(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--stall-seconds"))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--table"):
        config.pluginmanager.register(_Table(config.getoption("--table")))


class _Table:
    """Notes how each model's test went at each stage, and writes docs/models.md of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed: dict[tuple[str, int], bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from model_table import TESTS

        if found := TESTS.search(report.nodeid):
            cell = found["name"], int(found["stage"])
            self.passed[cell] = self.passed.get(cell, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        from architectures import ARCHITECTURES
        from model_table import rendered

        self.path.write_text(rendered(self.passed, ARCHITECTURES))
