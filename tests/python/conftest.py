from __future__ import annotations

import os

import pytest

pytest.register_assert_rewrite("training", "traces", "refusals")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=int(os.environ.get("ALIQUOT_KILLS", "5")),
        help="how many jobs lose a rank at a random instant, per transport (the promise is 50 of 50)",
    )


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))
