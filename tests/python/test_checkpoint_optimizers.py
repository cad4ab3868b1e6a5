"""Every optimizer's states come back on any number of ranks, and each goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from aliquot.checkpoint.snapshot import Snapshot
from aliquot.sharded import sharded
from checkpoints import assert_same_content, content_of, everything, manifest_of, train
from ranks import run_ranks
from torch import nn

MATRICES = ("blocks.0.up.weight", "blocks.0.down.weight", "odd.weight", "back.weight")


def torch_optimizer(optimizer: Any, **settings: Any) -> Callable[[nn.Module], list[Any]]:
    return lambda model: [aliquot.TorchOptimizer(model, optimizer, **settings)]


def in_two_groups(model: nn.Module) -> list[Any]:
    named = dict(model.named_parameters())
    groups = [{"params": [named[name] for name in MATRICES], "lr": 0.01}, {"params": [named["scale"]]}]
    optimizer = aliquot.AdamW(model, params=groups)
    optimizer.add_param_group({"params": [named["phase"]], "weight_decay": 0.5})
    return [optimizer]


def muon_and_adamw(model: nn.Module) -> list[Any]:
    named = dict(model.named_parameters())
    matrices = [named.pop(name) for name in MATRICES]
    rest = [param for param in named.values() if param.requires_grad]
    return [aliquot.Muon(model, params=matrices), aliquot.TorchOptimizer(model, torch.optim.AdamW, params=rest)]


OPTIMIZERS: Mapping[str, Callable[[nn.Module], list[Any]]] = {
    "AdamW": lambda model: [aliquot.AdamW(model)],
    "AdamW in groups": in_two_groups,
    "LAMB": lambda model: [aliquot.LAMB(model)],
    "Muon and AdamW": muon_and_adamw,
    "SGD": torch_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9),
    "plain SGD": torch_optimizer(torch.optim.SGD, lr=0.1),
    "Adam": torch_optimizer(torch.optim.Adam, amsgrad=True),
    "fused AdamW": torch_optimizer(torch.optim.AdamW, fused=True),
    "NAdam": torch_optimizer(torch.optim.NAdam),
    "Adagrad": torch_optimizer(torch.optim.Adagrad),
    "Rprop": torch_optimizer(torch.optim.Rprop),
}


class All:
    """Several optimizers as one."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        self.optimizers[0].zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def made(name: str, stage: int, seed: int) -> tuple[Any, All]:
    make = OPTIMIZERS[name]
    return everything(stage, seed=seed, make=lambda model, **_: All(make(model)))


def go_on(rank: int, directory: Path, name: str, stage: int) -> None:
    model, optimizer = made(name, stage, seed=0)
    train(model, optimizer, rank, range(2))
    aliquot.save_checkpoint(directory, model, optimizer.optimizers, step=2)
    losses = train(model, optimizer, rank, range(2, 4))
    other, other_optimizer = made(name, stage, seed=1)
    train(other, other_optimizer, rank, range(7, 8))
    aliquot.load_checkpoint(directory, other, other_optimizer.optimizers)
    assert torch.equal(torch.stack(train(other, other_optimizer, rank, range(2, 4))), torch.stack(losses))
    expected, actual = (aliquot.full_state_dict(each, all_ranks=True) for each in (model, other))
    assert [key for key in expected if not torch.equal(actual[key], expected[key])] == []


def load_and_save(rank: int, source: Path, directory: Path, name: str, stage: int) -> None:
    model, optimizer = made(name, stage, seed=1)
    aliquot.load_checkpoint(source, model, optimizer.optimizers)
    aliquot.save_checkpoint(directory, model, optimizer.optimizers, step=2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_go_to_any_world(name: str, tmp_path: Path) -> None:
    run_ranks(2, go_on, tmp_path / "source", name, 3)
    expected = content_of(tmp_path / "source" / "step_2")
    for world_size, stage in ((1, 2), (3, 1)):
        directory = tmp_path / str(world_size)
        run_ranks(world_size, load_and_save, tmp_path / "source", directory, name, stage)
        assert_same_content(content_of(directory / "step_2"), expected, but="buffer@")


class EverySecond(torch.optim.Optimizer):
    """Keeps a number of each element, and they don't lie side by side."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            if param.grad is not None:
                both = torch.stack([param.grad, torch.full_like(param.grad, 9.0)], -1)
                self.state[param].setdefault("sum", both[..., 0]).add_(param.grad)
                param.sub_(self.param_groups[0]["lr"] * param.grad)


def save_strided(rank: int, directory: Path) -> None:
    model, optimizer = everything(3, make=lambda model, **_: aliquot.TorchOptimizer(model, EverySecond))
    train(model, optimizer, rank, range(2))
    strided = [state for state in optimizer.states() if not state.value.is_contiguous()]
    assert strided
    snapshot = Snapshot.of(sharded(model), optimizer, None, (), None, None)
    snapshot.finish()
    assert all(part.memory.numbers().elements is part.memory.numbers().elements for part in snapshot.parts)
    assert all(part.memory.numbers().elements.is_contiguous() for part in snapshot.parts)
    for wait in (False, True):
        aliquot.save_checkpoint(directory / str(wait), model, optimizer, step=2, wait=wait)


def test_states_that_do_not_lie_side_by_side(tmp_path: Path) -> None:
    """A device has copied them before threads read them: nothing is copied once the snapshot is finished."""
    run_ranks(2, save_strided, tmp_path)
    contents = [content_of(tmp_path / str(wait) / "step_2") for wait in (True, False)]
    assert any(key.startswith("optimizer/0/sum/") for key in contents[0]["tensors"])
    assert_same_content(*contents)
    assert not any((value == 9).any() for key, value in contents[0]["tensors"].items() if "/sum/" in key)


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_stage_0_saves_each_state_once(name: str, tmp_path: Path) -> None:
    run_ranks(2, go_on, tmp_path / "0", name, 0)
    run_ranks(2, go_on, tmp_path / "3", name, 3)
    whole, sharded = (content_of(tmp_path / stage / "step_2") for stage in ("0", "3"))
    assert_same_content(whole, sharded)
    sizes = [file["bytes"] for file in manifest_of(tmp_path / "0" / "step_2")["files"].values()]
    assert max(sizes) < 1.1 * min(sizes)


def schedule(rank: int, directory: Path) -> None:
    """Schedulers of torch, one with Python's own types in its state, one with an infinity."""

    def made_schedules(optimizer: Any) -> list[Any]:
        return [
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 3]),
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
        ]

    model, optimizer = everything(2)
    schedules = made_schedules(optimizer)
    follow(model, optimizer, schedules, rank, range(2))
    aliquot.save_checkpoint(directory, model, optimizer, step=2, schedulers=schedules)
    expected = follow(model, optimizer, schedules, rank, range(2, 5))
    other, other_optimizer = everything(2, seed=1, lr=7.0)
    other_schedules = made_schedules(other_optimizer)
    aliquot.load_checkpoint(directory, other, other_optimizer, schedulers=other_schedules)
    assert follow(other, other_optimizer, other_schedules, rank, range(2, 5)) == expected
    assert other_schedules[0].state_dict() == schedules[0].state_dict()


def follow(model: Any, optimizer: Any, schedules: list[Any], rank: int, steps: range) -> list[float]:
    rates = []
    for step in steps:
        train(model, optimizer, rank, range(step, step + 1))
        schedules[0].step()
        schedules[1].step(1.0)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_schedulers_go_on(tmp_path: Path) -> None:
    run_ranks(2, schedule, tmp_path)


def refuse_others(rank: int, directory: Path) -> None:
    model, optimizer = everything(3)
    aliquot.save_checkpoint(directory, model, optimizer, step=0)
    aliquot.load_checkpoint(directory, model)  # the optimizer may be left out
    with pytest.raises(aliquot.CheckpointError, match="the optimizer is LAMB, and AdamW was saved"):
        aliquot.load_checkpoint(directory, model, aliquot.LAMB(model))
    with pytest.raises(aliquot.CheckpointError, match="2 optimizers are given, and 1 were saved"):
        aliquot.load_checkpoint(directory, model, [aliquot.AdamW(model), aliquot.LAMB(model)])
    with pytest.raises(aliquot.CheckpointError, match=r"only the checkpoint's group 0 has back\.bias"):
        aliquot.load_checkpoint(directory, model, aliquot.AdamW(model, params=[*model.parameters()][:2]))
    other, other_optimizer = everything(3)
    for call in (aliquot.load_checkpoint, partial(aliquot.save_checkpoint, step=1)):
        with pytest.raises(aliquot.CheckpointError, match="not made for this model"):
            call(directory, model, other_optimizer)
        with pytest.raises(aliquot.CheckpointError, match="not made for this model"):
            call(directory, model, torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    with pytest.raises(aliquot.Error, match=r"aliquot\.save_checkpoint"):
        optimizer.state_dict()
    with pytest.raises(aliquot.Error, match=r"aliquot\.load_checkpoint"):
        optimizer.load_state_dict({})
    del other


def test_optimizers_of_another_kind_or_model_are_refused(tmp_path: Path) -> None:
    run_ranks(2, refuse_others, tmp_path)
