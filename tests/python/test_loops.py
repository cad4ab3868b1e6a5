"""Ways to loop that people are used to, against the same loop with unsharded PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aliquot
import models
import pytest
import torch
from cases import BATCH, plain, square_loss
from models import WIDTH, Block, Chain, Checkpointed
from ranks import PROCESS_GROUP, SHARED_MEMORY, SHARED_MEMORY_POISONED, Transport, run_ranks
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from training import STAGES, Case, Reference, Sharded, Turn, assert_same_bits, assert_same_weights, train_both

WORLD_SIZE = 2
STEPS = 5


def two_forwards_one_backward(model: nn.Module, turn: Turn) -> Tensor:
    losses = torch.stack([square_loss(model, turn, part) for part in (0, 1)])
    losses.mean().backward()
    return losses.detach()


def contrast(model: nn.Module, turn: Turn) -> Tensor:
    """The second forward reads what the first one made, and one that nobody walks back runs between them."""
    x = model(turn.normal(BATCH, WIDTH))
    with torch.no_grad():
        target = model(turn.normal(BATCH, WIDTH, part=1))
    loss = (model(x) - target).square().mean()
    loss.backward()
    return loss.detach()


def backward_twice_in_no_sync(model: nn.Module, turn: Turn) -> Tensor:
    with turn.no_sync(model):
        first = square_loss(model, turn) / 2
        first.backward(retain_graph=True)
        first.backward()
    second = square_loss(model, turn, part=1)
    second.backward()
    return torch.stack([first, second]).detach()


def autocast(model: nn.Module, turn: Turn) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        losses = torch.stack([square_loss(model, turn, part).float() for part in (0, 1)])
    losses.mean().backward()
    return losses.detach()


def saliency_of_a_model_that_does_not_train(model: nn.Module, turn: Turn) -> Tensor:
    x = turn.normal(BATCH, WIDTH).requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().mean(), x, retain_graph=False)
    model.eval()
    (second,) = torch.autograd.grad(model(x).abs().sum(), x)
    plain(model.train(), turn)
    return torch.stack([first, second])


class Selective(Chain):
    """Each block is a checkpoint that keeps the results of matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, keep_products)
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return self.last(x)


class SelectiveInBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, keep_products)
        return checkpoint(super().forward, x, use_reentrant=False, context_fn=contexts)


def keep_products(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed_in_autocast(model: nn.Module, turn: Turn) -> Tensor:
    """What is computed again is cast as it was."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = square_loss(model, turn).float()
    loss.backward()
    return loss.detach()


class Parametrized(Chain):
    """Weights that are computed from parameters, each time they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            parametrizations.weight_norm(block.up)
            parametrizations.spectral_norm(block.down)


def hook_modules(kind: str) -> nn.Module:
    """They change gradients on the way: of the root, a unit, a module inside a unit, and one beside units."""
    model = Chain()
    for module in (model, model.blocks[0], model.blocks[1].up, model.last):
        if kind == "inputs":
            module.register_full_backward_hook(lambda module, inputs, outputs: halved(inputs))
        else:
            module.register_full_backward_pre_hook(lambda module, outputs: halved(outputs))
    return model


def halved(gradients: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient / 2 for gradient in gradients)


CASES = {
    "two_forwards_one_backward": Case(Chain, two_forwards_one_backward),
    "contrast": Case(Chain, contrast),
    "backward_twice_in_no_sync": Case(Chain, backward_twice_in_no_sync),
    "autocast": Case(Chain, autocast),
    "saliency": Case(Chain, saliency_of_a_model_that_does_not_train),
    "checkpoint_autocast": Case(partial(Checkpointed, False, 1), checkpointed_in_autocast),
    "parametrized": Case(Parametrized, plain),
    "module_hooks_of_inputs": Case(partial(hook_modules, "inputs"), plain),
    "module_hooks_of_outputs": Case(partial(hook_modules, "outputs"), plain),
    "selective_checkpoint": Case(Selective, plain),
    "selective_checkpoint_inside": Case(partial(Chain, 3, SelectiveInBlock), plain),
}
WAYS = [(1, SHARED_MEMORY), (3, SHARED_MEMORY), (3, SHARED_MEMORY_POISONED)]
"""With whole parameters, with parameters gathered in place, and with slots."""


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_trains_like_unsharded(name: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_both, CASES[name], stage, WORLD_SIZE, STEPS, transport=transport)


# Freezing after aliquot.shard


def set_trains(model: Any, step: int) -> None:
    model.blocks[0].requires_grad_(step not in (1, 2))
    model.blocks[1].up.requires_grad_(step != 2)
    model.first.requires_grad_(step != 3)


def freeze(rank: int, stage: int) -> None:
    case = Case(Chain, plain)
    sharded, reference = Sharded(case, stage), Reference(case, WORLD_SIZE)
    for step in range(6):
        for model in (sharded.model, *reference.replicas):
            set_trains(model, step)
        seen, expected = sharded.step(rank, step), reference.step(step)[rank]
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=0.0)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize(("stage", "transport"), [*WAYS, (3, PROCESS_GROUP)], ids=str)
def test_freezing_and_unfreezing_between_steps(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, freeze, stage, transport=transport)


# Hooks on parameters


def halve(gradient: Tensor) -> Tensor:
    return gradient / 2


def clamp(param: Tensor) -> None:
    assert param.grad is not None
    param.grad.clamp_(-0.01, 0.01)


def hook_all(model: nn.Module, kind: str) -> nn.Module:
    for param in model.parameters():
        if kind == "gradient":
            param.register_hook(halve)  # type: ignore[no-untyped-call]
        else:
            param.register_post_accumulate_grad_hook(clamp)  # type: ignore[no-untyped-call]
    return model


def train_with_hooks(rank: int, stage: int, kind: str, when: str) -> None:
    hooked = Case(lambda: hook_all(Chain(), kind), plain)
    sharded = Sharded(hooked if when == "before shard" else Case(Chain, plain), stage)
    reference = Reference(hooked if when != "after a step" else Case(Chain, plain), WORLD_SIZE)
    if when == "after a step":
        sharded.step(rank, 100), reference.step(100)
        for replica in reference.replicas:
            hook_all(replica, kind)
    if when != "before shard":
        hook_all(sharded.model, kind)
    for step in range(3):
        sharded.step(rank, step), reference.step(step)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize("when", ["before shard", "after shard", "after a step"])
@pytest.mark.parametrize("kind", ["gradient", "post_accumulate"])
def test_hooks_of_parameters_see_and_change_gradients(kind: str, when: str, stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_with_hooks, stage, kind, when, transport=transport)


# Averages of the weights


def average(rank: int, stage: int) -> None:
    case = Case(Chain, plain)
    ema = AveragedModel(case.build(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    other = AveragedModel(case.build(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    sharded, reference = Sharded(case, stage), Reference(case, WORLD_SIZE)
    for step in range(4):
        sharded.step(rank, step), reference.step(step)
        with aliquot.gathered(sharded.model):
            ema.update_parameters(sharded.model)
        other.update_parameters(reference.replicas[rank])
    assert_same_weights(ema.state_dict(), other.state_dict())


@pytest.mark.parametrize(("stage", "transport"), [*WAYS, (3, PROCESS_GROUP)], ids=str)
def test_exponential_average_of_the_weights(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, average, stage, transport=transport)


def average_a_sharded_model(rank: int) -> None:
    """A second sharded model, for averages that no rank could hold whole."""
    sharded, reference = Sharded(Case(Chain, plain), 3), Reference(Case(Chain, plain), WORLD_SIZE)
    ema = Sharded(Case(Chain, plain), 3).model
    expected = {name: value.clone() for name, value in reference.weights().items()}
    for step in range(4):
        sharded.step(rank, step), reference.step(step)
        for block, averaged in zip(sharded.model.modules(), ema.modules(), strict=True):
            blend(list(block.parameters(recurse=False)), list(averaged.parameters(recurse=False)))
        for name, value in reference.weights().items():
            expected[name].lerp_(value, 0.1)
    assert_same_weights(aliquot.full_state_dict(ema, all_ranks=True), expected)


def blend(params: list[nn.Parameter], averages: list[nn.Parameter]) -> None:
    if params:
        with torch.no_grad(), aliquot.gathered(params), aliquot.gathered(averages, write=True):
            for param, averaged in zip(params, averages, strict=True):
                averaged.lerp_(param, 0.1)


@pytest.mark.parametrize("transport", [SHARED_MEMORY, PROCESS_GROUP], ids=str)
def test_the_average_may_be_sharded_too(transport: Transport) -> None:
    run_ranks(WORLD_SIZE, average_a_sharded_model, transport=transport)


# Clipping and determinism


def train_clipped(rank: int, stage: int, max_norm: float | None) -> None:
    case = Case(Chain, plain)
    sharded = Sharded(case, stage, max_grad_norm=max_norm)
    reference = Reference(case, WORLD_SIZE, max_norm=max_norm)
    for step in range(STEPS):
        sharded.step(rank, step)
        reference.backward(step)
        torch.testing.assert_close(sharded.optimizer.grad_norm.float(), reference.update(), rtol=1e-6, atol=0.0)
    assert_same_weights(sharded.weights(), reference.weights())


@pytest.mark.parametrize("max_norm", [None, 0.05, 1000.0])
@pytest.mark.parametrize("stage", STAGES)
def test_max_grad_norm(stage: int, max_norm: float | None) -> None:
    run_ranks(WORLD_SIZE, train_clipped, stage, max_norm)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def train_deterministically(rank: int, stage: int, train: Callable[[nn.Module, Turn], Tensor]) -> None:
    ordinary, strict = Sharded(Case(Chain, train), stage), Sharded(Case(Chain, train), stage)
    for step in range(3):
        ordinary.step(rank, step)
        with deterministic():
            strict.step(rank, step)
    with deterministic():
        assert_same_bits(strict.weights(), ordinary.weights())


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
def test_deterministic_mode_changes_no_bit(stage: int, transport: Transport) -> None:
    run_ranks(WORLD_SIZE, train_deterministically, stage, plain, transport=transport)


# torch.compile


def compiled_before(backend: str) -> nn.Module:
    model = Chain()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend=backend)  # type: ignore[assignment]
    return model


def compile_in_place(model: nn.Module, backend: str) -> None:
    assert isinstance(model.blocks, nn.ModuleList)
    for block in model.blocks:
        block.compile(backend=backend)


def train_compiled(rank: int, stage: int, when: str, backend: str) -> None:
    case = Case(partial(compiled_before, backend) if when == "before shard" else Chain, plain)
    sharded, reference = Sharded(case, stage), Reference(Case(Chain, plain), WORLD_SIZE)
    if when == "after shard":
        compile_in_place(sharded.model, backend)
    for step in range(3):
        seen, expected = sharded.step(rank, step), reference.step(step)[rank]
        torch.testing.assert_close(seen, expected, rtol=1e-6, atol=0.0)
    weights = {name.replace("_orig_mod.", ""): value for name, value in sharded.weights().items()}
    assert_same_weights(weights, reference.weights())
    traced = {Path(code.co_filename) for seen in torch._dynamo.convert_frame.output_codes.seen if (code := seen())}
    ours = {path.name for path in traced if path.parent.name == "aliquot"}
    assert ours <= {"hooks.py", "outside.py"}, "it is not for torch.compile to trace what hooks do"
    assert Path(models.__file__) in traced


@pytest.mark.parametrize(("stage", "transport"), WAYS, ids=str)
@pytest.mark.parametrize(
    ("when", "backend"), [("before shard", "eager"), ("after shard", "eager"), ("after shard", "aot_eager")]
)
def test_compiled_blocks(when: str, backend: str, stage: int, transport: Transport) -> None:
    """The backend inductor takes a C++ compiler some minutes on a small machine; what it compiles is aot_eager's."""
    run_ranks(WORLD_SIZE, train_compiled, stage, when, backend, transport=transport)
