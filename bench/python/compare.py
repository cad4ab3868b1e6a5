"""The same model, seed and data trained by Aliquot (each stage), DDP, FSDP2 and DeepSpeed, in one run.

    python bench/python/compare.py                  134M parameters, 1 x 64 tokens, two CPU ranks of one thread each
    python bench/python/compare.py --small          the model of the main example: does everything run and agree?
    python bench/python/compare.py --only ddp,aliquot-3 --rounds 5 --json out.json
    python bench/python/compare.py --rows --help    the comparison on GPUs, in bf16

How to read it. Each contender runs in fresh processes, one contender after another, and all of it `--rounds` times, so
that a machine that drifts hits all alike. `alone` is the floor: one process, the same batch per rank, nothing sharded
and nobody to wait for. Step times are medians over all timed steps of all rounds, a step lasting as long as its slowest
rank; ratios are taken within a round first, then their median over the rounds. Forward, backward and update (clip,
step, clear gradients) have medians of their own; they are host times: on a GPU, work may still be queued at their end.
`peak rss` is the high-water mark per rank over the timed steps; it counts shared pages in every rank that maps them.
`peak pss` divides them among those ranks, so that the sum over the ranks is what the job holds, but it is read only
after forward, after backward and after update of one more step.

Verified before timed: the first losses and gradient norms must agree, or the run ends there and nothing is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

from contenders import CONTENDERS, installed
from records import Run, Settings
from report import memory_table, summary, time_table
from rich.console import Console
from verdict import DisagreementError, check_curve, check_start

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples" / "python"  # the model and the text are those of the main example
SMALL = {"dim": 256, "layers": 4, "heads": 4}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"the model of the main example: {SMALL}")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--layers", type=int, default=19)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--context", type=int, default=64, help="tokens per window")
    parser.add_argument("--batch", type=int, default=1, help="windows per rank and step")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=3, help="steps that are verified but not timed")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed, per contender and round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=lambda names: names.split(","), help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    if args.small:
        vars(args).update(SMALL)
    if unknown := set(args.only or ()) - set(CONTENDERS):
        parser.error(f"unknown contenders {sorted(unknown)}; there are {', '.join(CONTENDERS)}")
    return args


def run_contender(name: str, settings: Settings, ranks: int, threads: int) -> Run:
    """Runs `name` in processes of its own; an error there is raised here with the end of what they printed."""
    ranks = 1 if name == "alone" else ranks
    path = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": settings.device}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*launch, str(HERE / "worker.py"), name, settings.to_json(), folder]
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            raise RuntimeError(
                f"{name} failed with exit status {ended.returncode}; its last words:\n{ended.stdout[-4000:]}"
            )
        return Run.read(Path(folder), ranks)


def verify(name: str, run: Run, first_runs: dict[str, Run]) -> None:
    """Holds `run` to the first runs of this comparison: its start to any, its curve to one with as many ranks."""
    for other, reference in first_runs.items():
        check_start(name, run, other, reference)
        if len(reference.ranks) == len(run.ranks):
            check_curve(name, run, other, reference)


def measure(args: argparse.Namespace, console: Console) -> dict[str, list[Run]]:
    """Runs of each contender, one per round."""
    names = args.only or installed()
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for round_number in range(1, args.rounds + 1):
        for name in names:
            console.print(f"round {round_number}/{args.rounds}: {name}", highlight=False)
            run = run_contender(name, settings, args.ranks, args.threads)
            verify(name, run, {other: done[0] for other, done in runs.items() if done})
            runs[name].append(run)
    return runs


def compare_on_gpus() -> None:
    sys.path.append(str(EXAMPLES))
    from gpu.compare import main as compare

    compare(sys.argv[1:])


def main() -> None:
    if any(argument in ("--rows", "--curve") for argument in sys.argv):
        compare_on_gpus()
        return
    args = parse_arguments()
    console = Console(stderr=True)
    try:
        runs = measure(args, console)
    except (DisagreementError, RuntimeError) as error:
        sys.exit(f"compare.py: {error}")
    summaries = {name: summary(name, runs, args.batch * args.context) for name in runs}
    Console().print(time_table(summaries), memory_table(summaries))
    if args.json:
        details = {name: summaries[name] | {"rounds": [asdict(run) for run in done]} for name, done in runs.items()}
        args.json.write_text(json.dumps({"arguments": vars(args), "contenders": details}, default=str))


if __name__ == "__main__":
    main()
