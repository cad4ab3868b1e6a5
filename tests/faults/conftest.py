from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import shim
from extent import LONG, SHORT, Extent
from ranks import die_with_parent

Run = Callable[..., Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-faults", action="store_true", help="the long form of tests/faults; takes hours")


@pytest.fixture(scope="session")
def extent(request: pytest.FixtureRequest) -> Extent:
    return LONG if request.config.getoption("--all-faults", default=False) else SHORT


@pytest.fixture(scope="session")
def on_failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs `fn(*args)` in a process that was started with the shim and is warm; returns what it returns."""
    library = shim.build(tmp_path_factory.mktemp("shim"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=die_with_parent) as executor:
        os.environ["LD_PRELOAD"] = str(library)
        try:
            executor.submit(os.getpid).result()  # starts it
        finally:
            del os.environ["LD_PRELOAD"]
        yield lambda fn, *args: executor.submit(fn, *args).result()
