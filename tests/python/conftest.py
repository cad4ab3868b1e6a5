from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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
    parser.addoption("--fault-table", type=Path, help="where to write how faults ended, such as docs/faults.md")


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
    if path := config.getoption("--table"):
        config.pluginmanager.register(_Table(path, _of_models))
    if path := config.getoption("--fault-table"):
        config.pluginmanager.register(_Table(path, _of_faults))


def _of_models(passed: Mapping[str, bool]) -> str:
    from architectures import ARCHITECTURES
    from model_table import of_run

    return of_run(passed, ARCHITECTURES)


def _of_faults(passed: Mapping[str, bool]) -> str:
    from fault_matrix import rendered

    return rendered(passed)


class _Table:
    """Notes how each test went, and what it says by `record_property`, and writes a page of the docs of it."""

    def __init__(self, path: Path, rendered: Callable[[Mapping[str, bool]], str]) -> None:
        self.path = path
        self.rendered = rendered
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed[report.nodeid] = self.passed.get(report.nodeid, True) and report.passed
        self.passed.update((f"{report.nodeid}::{finding}", bool(ok)) for finding, ok in report.user_properties)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(self.rendered(self.passed))
