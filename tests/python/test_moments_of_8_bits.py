"""AdamW with 8-bit moments, against the paper's scheme over whole parameters (https://arxiv.org/abs/2110.02861)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from aliquot.sharded import sharded
from cases import CASES, plain
from checkpoints import content_of, everything, train
from models import WIDTH
from ranks import TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import (
    ADAMW,
    MAX_NORM,
    STAGES,
    Case,
    Reference,
    Turn,
    assert_same_bits,
    assert_same_weights,
    built,
    relative_error,
)

BLOCK = 256
DECADES = 7
STEPS = 8
WORLD_SIZE = 2


class Wide(nn.Sequential):
    """Parameters of more and of less than a block, none of whole ones."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 61), nn.Tanh(), nn.Linear(61, 37), nn.Tanh(), nn.Linear(37, WIDTH))


WIDE = Case(Wide, plain)
ALL_CASES = {"wide": WIDE} | {name: CASES[name] for name in ("odd_sizes", "blocks_in_some_steps", "frozen")}


def boundaries(parts: int) -> Tensor:
    """Where the values' parts of the decades begin: 10^-7 first, 1 last. `parts`: of the lowest decade."""
    made = [
        torch.linspace(0.1, 1, parts * 2**decade + 1, dtype=torch.float64)[:-1] * 10.0 ** (decade + 1 - DECADES)
        for decade in range(DECADES)
    ]
    return torch.cat([*made, torch.ones(1, dtype=torch.float64)])


def rounded(numbers: Tensor, has_sign: bool) -> Tensor:
    """What 8 bits leave of one block: of each number's part of the largest one, the middle of where it lies."""
    largest = numbers[numbers.abs().argmax()]
    if largest == 0:
        return numbers.clone()
    starts = boundaries(1 if has_sign else 2)
    ends = torch.cat([starts[1:], starts[-1:]])
    middles = torch.cat([torch.zeros(1, dtype=torch.float64), (starts + ends) / 2])
    parts = numbers.double() / largest.double()
    index = torch.searchsorted(starts, parts.abs(), right=True)
    if not has_sign:
        index = torch.where(parts > 0, index.clamp(min=1), 0)  # no second moment becomes zero
    index = torch.where(parts == -1, len(starts) - 1, index)  # the largest alone is itself
    return (middles[index] * parts.sign() * largest.double()).float()


class Whole(torch.optim.Optimizer):
    """AdamW over whole parameters whose moments are rounded behind each step, block by block of each of `cuts`."""

    def __init__(self, params: Any, cuts: list[list[int]]) -> None:
        super().__init__(params, dict(ADAMW))
        self.cuts = cuts

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        for param, cuts in zip(group["params"], self.cuts, strict=True):
            self._step_param(group, param, cuts)

    def _step_param(self, group: dict[str, Any], param: Tensor, cuts: list[int]) -> None:
        (beta1, beta2), state = group["betas"], self.state[param]
        state["step"] = state.get("step", 0) + 1
        m = state.setdefault("exp_avg", torch.zeros_like(param)).lerp_(param.grad, 1 - beta1)
        v = state.setdefault("exp_avg_sq", torch.zeros_like(param))
        v.mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
        root = v.sqrt() / math.sqrt(1 - beta2 ** state["step"])
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.addcdiv_(m, root + group["eps"], value=-group["lr"] / (1 - beta1 ** state["step"]))
        for moment, has_sign in ((m, True), (v, False)):
            for part in moment.view(-1).tensor_split(cuts):
                for block in part.split(BLOCK):
                    block.copy_(rounded(block, has_sign))


def cuts_of(model: Any) -> list[list[int]]:
    """Where the ends of shards cut each parameter."""
    state = sharded(model)
    made = []
    for place in (param._aliquot for param in model.parameters()):
        shard = state.engine.numel(place.unit.index) // state.world.world_size
        first = state.engine.offset(place.unit.index, place.index)
        made.append([end - first for end in range(0, first + place.shape.numel(), shard) if end > first])
    return made


class Training:
    def __init__(self, case: Case, stage: int, precision: Any = None, **settings: Any) -> None:
        self.case = case
        self.model: Any = aliquot.shard(built(case), stage=stage, units=case.units, precision=precision)
        settings = {**ADAMW, "max_grad_norm": MAX_NORM, "moment_bits": 8, **settings}
        self.optimizer = aliquot.AdamW(self.model, **settings)

    def step(self, rank: int, step: int) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.case.run(self.model, Turn(rank, step, no_sync=aliquot.no_sync))
        self.optimizer.step()
        return loss

    def weights(self) -> dict[str, Tensor]:
        return aliquot.full_state_dict(self.model, all_ranks=True)

    def memory(self) -> Iterator[tuple[str, Tensor]]:
        """Codes and scales of this rank's shard."""
        for state in self.optimizer.states():
            memory: Any = state.value
            yield f"codes of {state.name} of {state.place.name}", memory.codes.to("cpu", copy=True)
            yield f"scales of {state.name} of {state.place.name}", memory.scales.to("cpu", copy=True)


def follow_the_paper(rank: int, stage: int, world_size: int) -> None:
    training, reference = Training(WIDE, stage), Reference(WIDE, world_size)
    cuts = cuts_of(training.model)
    reference.optimizers = [Whole(list(replica.parameters()), cuts) for replica in reference.replicas]  # type: ignore[misc]
    for step in range(STEPS):
        training.step(rank, step)
        reference.step(step)
    # what lies between two values by rounding alone may become the other one, of which some elements then go on
    expected = {name: value.cpu() for name, value in reference.weights().items()}
    assert_same_weights(training.weights(), expected, tolerance=2e-4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_steps_as_the_paper_says(stage: int, world_size: int) -> None:
    run_ranks(world_size, follow_the_paper, stage, world_size)


def run_case(rank: int, case: str, stage: int, precision: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    training = Training(ALL_CASES[case], stage, precision)
    for step in range(STEPS):
        training.step(rank, step)
    return training.weights(), dict(training.memory())


def assert_stages_agree(transport: Transport, case: str, precision: Any = None, stages: Any = STAGES) -> None:
    of_stages = [run_ranks(WORLD_SIZE, run_case, case, stage, precision, transport=transport) for stage in stages]
    for of_stage in of_stages[1:]:
        for (weights, memory), (first_weights, first_memory) in zip(of_stage, of_stages[0], strict=True):
            assert_same_bits(weights, first_weights)
            assert_same_bits(memory, first_memory)


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("case", ALL_CASES)
def test_weights_codes_and_scales_are_alike_at_all_stages(case: str, transport: Transport) -> None:
    assert_stages_agree(transport, case)


PRECISIONS = {
    "bf16": aliquot.Precision("bf16"),
    "bf16_fp32": aliquot.Precision("bf16", master="fp32"),
    "fp16": aliquot.Precision("fp16"),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_masters_of_all_forms_are_stepped(name: str) -> None:
    assert_stages_agree(TRANSPORTS[0], "wide", PRECISIONS[name], stages=(0, 3))


def skip(rank: int, stage: int, precision: Any) -> None:
    training = Training(WIDE, stage, precision)
    for step in range(3):
        training.step(rank, step)
    weights, memory = training.weights(), dict(training.memory())
    training.optimizer.zero_grad()
    training.model(torch.full((1, WIDTH), math.inf if rank == 1 else 1.0)).sum().backward()
    training.optimizer.step()
    assert_same_bits(training.weights(), weights)
    assert_same_bits(dict(training.memory()), memory)
    assert aliquot.stats(training.model).skipped == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_step_leaves_codes_and_scales(stage: int, precision: str) -> None:
    run_ranks(WORLD_SIZE, skip, stage, precision)


def losses(rank: int, moment_bits: int) -> list[Tensor]:
    training = Training(WIDE, 3, moment_bits=moment_bits)
    return [training.step(rank, 0) for _ in range(60)]


def test_the_loss_falls_as_with_fp32() -> None:
    of_8, of_32 = (torch.stack(run_ranks(WORLD_SIZE, losses, bits)[0]) for bits in (8, 32))
    assert of_32[-1] < 0.1 * of_32[0]
    torch.testing.assert_close(of_8, of_32, rtol=0.03, atol=0.01)
    assert not torch.equal(of_8, of_32)


def bytes_per_parameter(rank: int, stage: int, moment_bits: int) -> float:
    model = aliquot.shard(nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))), stage=stage)
    aliquot.AdamW(model, moment_bits=moment_bits)  # type: ignore[arg-type]
    held = aliquot.stats(model).bytes
    return (held["exp_avg"] + held["exp_avg_sq"]) / sum(p._aliquot.shape.numel() for p in model.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", STAGES)
def test_moments_take_two_bytes_a_parameter_and_their_scales(stage: int) -> None:
    ranks = WORLD_SIZE if stage else 1
    for bits, expected in ((32, 8), (8, 2 + 2 * 4 / BLOCK)):
        held = run_ranks(WORLD_SIZE, bytes_per_parameter, stage, bits)[0]
        assert held == pytest.approx(expected / ranks, rel=2e-3)


def add_a_group(rank: int, stage: int) -> dict[str, Tensor]:
    model: Any = aliquot.shard(built(WIDE), stage=stage)
    first, second, *rest = model.parameters()
    groups = [{"params": [first], "lr": 1e-2}, {"params": [second], "weight_decay": 0.0}]
    optimizer = aliquot.AdamW(model, params=groups, moment_bits=8)
    for step in range(STEPS):
        if step == 3:
            optimizer.add_param_group({"params": rest, "lr": 3e-3})
        before = aliquot.full_state_dict(model, all_ranks=True)
        optimizer.zero_grad()
        WIDE.run(model, Turn(rank, step))
        optimizer.step()
        after = aliquot.full_state_dict(model, all_ranks=True)
        moved = [name for name in after if not torch.equal(after[name], before[name])]
        assert len(moved) == (2 if step < 3 else len(after))
    return after


def test_groups_may_differ_and_be_added() -> None:
    of_stages = [run_ranks(WORLD_SIZE, add_a_group, stage)[0] for stage in (0, 3)]
    assert_same_bits(of_stages[1], of_stages[0])


def save(rank: int, directory: Path, stage: int, bits: int, behind: bool) -> tuple[Tensor, dict[str, Tensor]]:
    model, optimizer = everything(stage, moment_bits=bits)
    train(model, optimizer, rank, range(4))
    aliquot.save_checkpoint(directory, model, optimizer, step=4, wait=not behind)
    seen = train(model, optimizer, rank, range(4, 7))
    sharded(model).world.background.settle()
    return torch.stack(seen).cpu(), aliquot.full_state_dict(model, all_ranks=True)


def go_on(rank: int, directory: Path, stage: int, bits: int, to: Path) -> tuple[Tensor, dict[str, Tensor]]:
    model, optimizer = everything(stage, seed=1, moment_bits=bits)
    train(model, optimizer, rank, range(10, 12))
    aliquot.load_checkpoint(directory, model, optimizer)
    aliquot.save_checkpoint(to, model, optimizer, step=4)
    seen = train(model, optimizer, rank, range(4, 7))
    return torch.stack(seen).cpu(), aliquot.full_state_dict(model, all_ranks=True)


@pytest.mark.parametrize("behind", [False, True], ids=["", "behind"])
def test_ranks_as_many_as_saved_go_on_to_the_bit_at_any_stage(tmp_path: Path, behind: bool) -> None:
    saved = run_ranks(WORLD_SIZE, save, tmp_path / "from", 3, 8, behind)
    for stage in STAGES:
        resumed = run_ranks(WORLD_SIZE, go_on, tmp_path / "from", stage, 8, tmp_path / str(stage))
        for (losses, weights), (expected, expected_weights) in zip(resumed, saved, strict=True):
            assert torch.equal(losses, expected)
            assert_same_bits(weights, expected_weights)
        assert_states_near(tmp_path / str(stage), tmp_path / "from", 0)


def assert_states_near(directory: Path, expected: Path, tolerance: float) -> None:
    """Of optimizers; parameters are the same."""
    actual, before = (content_of(path / "step_4")["tensors"] for path in (directory, expected))
    for key in (key for key in before if not key.startswith("buffer")):
        error = relative_error(actual[key], before[key])
        assert error <= (tolerance if key.startswith("optimizer/") else 0), (key, error)


@pytest.mark.parametrize(
    ("bits", "world_size", "then", "tolerance"), [(8, 3, 8, 0.03), (8, 1, 8, 0.03), (8, 3, 32, 0), (32, 2, 8, 0.03)]
)
def test_other_worlds_and_widths_take_the_moments(
    tmp_path: Path, bits: int, world_size: int, then: int, tolerance: float
) -> None:
    """fp32 moments are what a checkpoint holds, so that only what is in 8 bits, cut otherwise, is rounded again."""
    run_ranks(WORLD_SIZE, save, tmp_path / "from", 2, bits, False)
    for stage in (0, 3):
        run_ranks(world_size, go_on, tmp_path / "from", stage, then, tmp_path / str(stage))
        assert_states_near(tmp_path / str(stage), tmp_path / "from", tolerance)


def refuse(rank: int) -> None:
    model = aliquot.shard(built(WIDE))
    with pytest.raises(aliquot.InvalidArgument, match="moment_bits is 4; it is 8 or 32"):
        aliquot.AdamW(model, moment_bits=4)  # type: ignore[arg-type]
    with pytest.raises(aliquot.Error, match="moments of"):
        aliquot.AdamW(model, moment_bits=8 if rank == 0 else 32)


def test_what_can_not_be_right_is_refused() -> None:
    run_ranks(WORLD_SIZE, refuse)
