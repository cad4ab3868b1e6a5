"""The examples run as a user runs them, for a few steps on two ranks: the loss falls, and the plot is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from projects import output_of

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(name: str, plot: Path, *options: str) -> str:
    """What the example prints, without colours, on the CPU as on every machine."""
    printed = output_of(*LAUNCH, EXAMPLES / name, "--transport", "shared_memory", "--plot", plot, *options)
    assert plot.read_bytes().startswith(b"\x89PNG"), f"{name} saved no plot"
    return printed


def losses(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step +\d+/\d+  loss (\S+)", printed, re.MULTILINE)]


@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_vision_learns(model: str, tmp_path: Path) -> None:
    first, *_, last = losses(run("vision.py", tmp_path / "plot.png", "--model", model, "--steps", "60"))
    assert last < 0.8 * first


def test_science_learns(tmp_path: Path) -> None:
    few = ("--steps", "60", "--problems", "24", "--tests", "4", "--batch", "16")
    first, *_, last = losses(run("science.py", tmp_path / "plot.png", *few))
    assert last < 0.5 * first


def test_lora_adapts_and_only_adapters_have_gradients_and_states(tmp_path: Path) -> None:
    few = ("--steps", "40", "--adapt-steps", "40", "--batch", "4")
    printed = run("lora.py", tmp_path / "plot.png", *few)
    before, after = map(float, re.findall(r"loss (\S+) before and (\S+) after", printed)[0])
    assert after < before - 0.05
    trained, parameters = (int(count.replace(",", "")) for count in re.findall(r"([\d,]+) of ([\d,]+) par", printed)[0])
    assert 0 < trained < parameters / 10
    held = dict(re.findall(r"(gradients|optimizer states)\D+([\d.]+) MiB", printed))
    on_a_rank = 4 * trained / 2 / 2**20
    assert float(held["gradients"]) == pytest.approx(on_a_rank, abs=0.06)
    assert float(held["optimizer states"]) == pytest.approx(2 * on_a_rank, abs=0.06)
