"""Graphs that read a unit where no hook gathers it again: right, or refused before a wrong number is seen."""

from __future__ import annotations

import contextlib

import aliquot
import pytest
import torch
from cases import BATCH, plain
from models import WIDTH, Block, Chain, Checkpointed
from ranks import SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from torch import Tensor, nn
from torch.nn import functional
from training import STAGES, Case, Turn, train_both

TRANSPORTS = (
    SHARED_MEMORY,
    SHARED_MEMORY_POISONED,
    Transport("process_group"),
    Transport("process_group", poison=True),
)
WORLD_SIZE = 2
STEPS = 3
ENOUGH_SLOTS = 8


def penalty(model: nn.Module, turn: Turn) -> Tensor:
    """Wasserstein GAN's: the gradient of the output is part of the loss."""
    x = turn.normal(BATCH, WIDTH).requires_grad_()
    y: Tensor = model(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = y.square().mean() + (slope.norm(dim=1) - 1).square().mean()
    loss.backward()
    return loss.detach()


class Force(nn.Module):
    """A potential whose forces are its output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.energy = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x = x.requires_grad_()
        with torch.enable_grad():
            for block in self.blocks:
                y = block(y)
            (force,) = torch.autograd.grad(self.energy(y).sum(), x, create_graph=True)
        return force


class InPlace(nn.Module):
    """Each block begins by writing to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(InPlaceBlock() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class InPlaceBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.relu_(x))


class AddedInPlace(InPlace):
    """Each block's output is a view that the caller writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            y = block(x).view(2, -1, WIDTH)
            y += x.view(2, -1, WIDTH)
            x = y.view(-1, WIDTH)
        return x


class Memory(nn.Module):
    """Each block hands one of its inputs on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(MemoryBlock() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.first(x)
        x = torch.sin(memory)
        for block in self.blocks:
            memory, x = block(memory, x)
        return x


class MemoryBlock(Block):
    def forward(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return memory, super().forward(x + memory)


RIGHT = {
    "in_place": Case(InPlace, plain),
    "added_in_place": Case(AddedInPlace, plain),
    "handed_on": Case(Memory, plain),
    "penalty": Case(Chain, penalty, slots=ENOUGH_SLOTS),
    "force": Case(Force, plain, slots=ENOUGH_SLOTS),
}


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", RIGHT)
def test_is_right(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_both, RIGHT[name], stage, WORLD_SIZE, STEPS, transport=transport)


class Aside(Block):
    """Keeps a tensor that its return value does not hold."""

    def forward(self, x: Tensor) -> Tensor:
        self.aside = torch.softmax(self.up(x), -1).square().mean()
        return super().forward(x)


class Late(Block):
    """Goes on after its output, so that no hook tells when what it keeps is walked back."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.aside = torch.softmax(self.up(y), -1).square().mean()
        return y


class LateInSpans(Checkpointed):
    def __init__(self) -> None:
        super().__init__(use_reentrant=False, span=2)
        self.blocks = nn.ModuleList(Late() for _ in range(4))


def late_in_gathered(model: nn.Module, turn: Turn) -> Tensor:
    loss = model(turn.normal(BATCH, WIDTH)).square().mean() + asides(model)
    with aliquot.gathered(model) if hasattr(model, "_aliquot") else contextlib.nullcontext():
        loss.backward()
    return loss.detach()


def late_under_hooks(model: nn.Module, turn: Turn) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor):
        loss = model(turn.normal(BATCH, WIDTH)).square().mean() + asides(model)
    loss.backward()
    return loss.detach()


def asides(model: nn.Module) -> Tensor:
    kept: list[Tensor] = [block.aside for block in model.blocks]  # type: ignore[union-attr, misc]
    return torch.stack(kept).sum()


def with_asides(model: nn.Module, turn: Turn) -> Tensor:
    loss = model(turn.normal(BATCH, WIDTH)).square().mean() + asides(model)
    loss.backward()
    return loss.detach()


def regularized(model: nn.Module, turn: Turn) -> Tensor:
    """Reads the parameters of a sharded model as one may, and walks back when they are not gathered any more."""
    loss = model(turn.normal(BATCH, WIDTH)).square().mean()
    if hasattr(model, "_aliquot"):
        with aliquot.gathered(model):
            loss = loss + square_sum(model)
    else:
        loss = loss + square_sum(model)
    loss.backward()
    return loss.detach()


def square_sum(model: nn.Module) -> Tensor:
    return 0.1 * sum((param.square().sum() for param in model.parameters()), torch.zeros(()))


MAYBE = {
    "asides": Case(lambda: Chain(4, Aside), with_asides),
    "late": Case(lambda: Chain(4, Late), with_asides),
    "late_in_gathered": Case(lambda: Chain(4, Late), late_in_gathered),
    "late_under_hooks": Case(lambda: Chain(4, Late), late_under_hooks),
    "late_in_spans": Case(LateInSpans, with_asides),
    "regularized": Case(Chain, regularized),
    "penalty": Case(Chain, penalty),
    "force": Case(Force, plain),
}


def refusal(rank: int, case: Case, stage: int) -> str | None:
    try:
        train_both(rank, case, stage, WORLD_SIZE, STEPS)
    except (aliquot.Error, RuntimeError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MAYBE)
def test_is_right_or_refused(name: str, stage: int, transport: Transport) -> None:
    for text in run_ranks(WORLD_SIZE, refusal, MAYBE[name], stage, transport=transport):
        assert text is None or (stage == 3 and transport != SHARED_MEMORY)
        known = (
            "aliquot.shard(model, slots=",
            "modified by an inplace operation",
            "reads a parameter whose unit is not",
        )
        assert text is None or any(part in text for part in known), text


def goes_on_after_a_refusal(rank: int, case: Case) -> None:
    """The step that was refused leaves nothing behind."""
    model = aliquot.shard(case.build(), stage=3)
    optimizer = aliquot.AdamW(model)
    with pytest.raises(RuntimeError):
        case.run(model, Turn(rank, 0))
    aliquot.reset_step(model)
    plain(model, Turn(rank, 0))
    optimizer.step()
    assert all(torch.isfinite(value).all() for value in aliquot.full_state_dict(model, all_ranks=True).values())


@pytest.mark.parametrize("name", ["regularized", "penalty"])
def test_goes_on_after_a_refusal(name: str) -> None:
    run_ranks(WORLD_SIZE, goes_on_after_a_refusal, MAYBE[name], transport=Transport("process_group", poison=True))
