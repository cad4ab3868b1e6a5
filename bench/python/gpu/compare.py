"""Runs the contenders of every row, verifies them, and reports."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import median

from rich import box
from rich.console import Console
from verdict import BF16, FP32, DisagreementError, check_curve, check_start

from gpu import arguments
from gpu.curve import curve_table, differences
from gpu.launch import run_job
from gpu.records import FLOOR, Job, Row, Run
from gpu.report import summary, table

Runs = dict[str, dict[str, list[Run]]]  # by row and contender; one per round

WIDTH = 170  # of the table where there is no terminal to ask


def main(argv: Sequence[str]) -> None:
    args = arguments.parse(argv)
    runs = measure(args, Console(stderr=True, soft_wrap=True, highlight=False))
    found = curve_table(runs) if args.curve else table(args.rows, runs)
    if Console().is_terminal:
        Console().print(found)
    else:
        found.box = box.MARKDOWN  # to keep
        Console(width=WIDTH).print(found)


def measure(args: argparse.Namespace, log: Console) -> Runs:
    runs: Runs = {str(row): {name: [] for name in row.contenders or ()} for row in args.rows}
    deadline = time.monotonic() + args.budget
    for number in range(1, args.rounds + 1):
        for row in args.rows:
            for name in row.contenders:
                done = runs[str(row)]
                if any(run.failure for run in done[name]):
                    continue
                run = Run(failure="not started: the budget was used up")
                if time.monotonic() < deadline:
                    run = run_one(args, row, name, done, log, f"round {number}/{args.rounds}: {row} {name}")
                done[name].append(run)
                write(args, runs)
    return runs


def run_one(args: argparse.Namespace, row: Row, name: str, done: dict[str, list[Run]], log: Console, title: str) -> Run:
    rate = args.lr or (3e-4 if args.curve else 1e-5)
    job = Job(
        contender=name, row=row, warmup=args.warmup, steps=args.steps, seed=args.seed, lr=rate,
        device=args.device, precision=args.precision, text=args.curve,
    )  # fmt: skip
    start = time.monotonic()
    run = run_job(job, args.ranks, args.timeout, args.start)
    if run.failure is None:
        run = verified(name, run, done, args.precision)
    log.print(f"{title}: took {time.monotonic() - start:.1f} s; {outcome(run)}", markup=False)
    return run


def outcome(run: Run) -> str:
    if run.failure:
        return f"no result: {run.failure}"
    ready = max(rank.start_seconds for rank in run.ranks)
    return f"ready after {ready:.1f} s, {median(run.step_seconds) * 1000:.1f} ms a step"


def verified(name: str, run: Run, done: dict[str, list[Run]], precision: str) -> Run:
    """Holds `run` to the first good runs of its row: its start to any, its curve to one with as many ranks."""
    tolerance = {"bf16": BF16, "fp32": FP32}[precision]
    first = {other: runs[0] for other, runs in done.items() if runs and runs[0].failure is None}
    try:
        for other, reference in first.items():
            check_start(name, run, other, reference, tolerance)
            if FLOOR not in (name, other):
                check_curve(name, run, other, reference, tolerance)
    except DisagreementError as error:
        return replace(run, failure=str(error))
    return run


def write(args: argparse.Namespace, runs: Runs) -> None:
    if not args.json:
        return
    rows = {
        row: {name: summary(name, done) | {"rounds": [asdict(run) for run in done[name]]} for name in done}
        for row, done in runs.items()
    }
    curves = {"curve": differences(runs)} if args.curve else {}
    args.json.write_text(json.dumps({"arguments": vars(args), "rows": rows, **curves}, default=str))
