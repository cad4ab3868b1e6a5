"""The tables of docs/models.md and docs/models_on_gpus.md: which models train like unsharded PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import aliquot
import torch
import transformers
from training import STAGES, Case, built

PASSED, FAILED = "✓", "✗"


@dataclass(frozen=True)
class Page:
    """One such table."""

    head: str
    tests: re.Pattern[str]
    """Matches what says of a model and a stage whether it trained: the name of a test, or of a finding in one."""
    stages: tuple[int, ...]


ON_CPUS = Page(
    f"""# Models

What people train, tiny, from configurations, in fp32 on two ranks, beside unsharded PyTorch on the same global batch.
{PASSED}: every loss and every weight agrees to 1e-6, relative; at stage 3 both where units are gathered in place and
where they land in slots that are filled with NaN between uses. Parameters are counted as PyTorch counts them, tied ones
once. [The same on GPUs](models_on_gpus.md).

Written by `python -m pytest tests/python/test_architectures.py --table docs/models.md`, with aliquot {{aliquot}},
torch {{torch}} and transformers {{transformers}}.

""",
    re.compile(r"test_architectures\.py::test_trains_like_unsharded\[(?P<name>.+)-(?P<stage>\d)-[a-z_-]+\]$"),
    STAGES,
)
ON_GPUS = Page(
    f"""# Models on GPUs

The models of [models.md](models.md), in fp32 on two ranks, beside unsharded PyTorch on the same GPU and the same global
batch. {PASSED}: every loss and every weight agrees to 1e-5, relative (PyTorch's own sums come in any order there), over
the transport `peer`, with slots that are filled with NaN between uses, and over `nccl` (but for experts as modules at
stage 3, where ranks run other units than their partners: only `peer` can do that).

Written by `python -m pytest tests/python/gpu/test_architectures_on_gpus.py --table docs/models_on_gpus.md`, with
aliquot {{aliquot}}, torch {{torch}} and transformers {{transformers}}, on {{gpus}}.

""",
    re.compile(r"test_architectures_on_gpus\.py::.*::(?P<name>.+)-(?P<stage>\d)$"),
    (1, 3),
)


def of_run(passed: Mapping[str, bool], cases: Mapping[str, Case]) -> str:
    """The page that these tests write."""
    page = ON_GPUS if by_cell(passed, ON_GPUS) else ON_CPUS
    return rendered(by_cell(passed, page), cases, page)


def by_cell(passed: Mapping[str, bool], page: Page) -> dict[tuple[str, int], bool]:
    """By a model's name and the stage: whether all tests of it passed."""
    cells: dict[tuple[str, int], bool] = {}
    for test, ok in passed.items():
        if found := page.tests.search(test):
            cell = found["name"], int(found["stage"])
            cells[cell] = cells.get(cell, True) and ok
    return cells


def parameters(case: Case) -> int:
    return sum(param.numel() for param in built(case).parameters())


def rendered(passed: Mapping[tuple[str, int], bool], cases: Mapping[str, Case], page: Page) -> str:
    """Cells of which nothing is known stay empty."""
    versions = {"aliquot": aliquot.__version__, "torch": _version(torch), "transformers": _version(transformers)}
    lines = [
        f"| model | parameters | {' | '.join(f'stage {stage}' for stage in page.stages)} |",
        f"|---|--:|{'|'.join(':-:' for _ in page.stages)}|",
    ]
    marks = {True: PASSED, False: FAILED, None: ""}
    for name, case in cases.items():
        cells = [marks[passed.get((name, stage))] for stage in page.stages]
        lines.append(f"| {name} | {parameters(case)} | {' | '.join(cells)} |")
    return page.head.format(gpus=_gpus(), **versions) + "\n".join(lines) + "\n"


def _gpus() -> str:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return " and ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def _version(module: object) -> str:
    return str(getattr(module, "__version__", "")).partition("+")[0]


def committed_rows(table: str, page: Page) -> dict[str, int]:
    """Models and their parameters, of rows that have a tick at every stage."""
    ticks = rf"(?:\| {PASSED} ){{{len(page.stages)}}}\|"
    return {name: int(count) for name, count in re.findall(rf"^\| (.+?) \| (\d+) {ticks}$", table, re.MULTILINE)}
