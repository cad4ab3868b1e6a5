"""What each model is put through in one step. The same function trains the sharded model and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from models import (
    WIDTH,
    Block,
    Chain,
    Checkpointed,
    CheckpointInBlock,
    ConvNet,
    Frozen,
    Gated,
    Keywords,
    LanguageModel,
    Nest,
    NeverUsed,
    Odd,
    Structured,
    Towers,
)
from torch import Tensor, nn
from torch.nn import functional
from training import Case, Turn

BATCH = 4


def square_loss(model: nn.Module, turn: Turn, part: int = 0, **kwargs: object) -> Tensor:
    y: Tensor = model(turn.normal(BATCH, WIDTH, part=part), **kwargs)
    target = torch.sin(torch.arange(y.numel())).view_as(y)
    return functional.mse_loss(y.to(target.dtype), target)


def plain(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn)
    loss.backward()
    return loss.detach()


def ordered(model: nn.Module, turn: Turn, orders: Sequence[Sequence[int]]) -> Tensor:
    loss = square_loss(model, turn, order=orders[turn.step % len(orders)])
    loss.backward()
    return loss.detach()


def gated(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn, gated=turn.step % 2 == 0)
    loss.backward()
    return loss.detach()


def images(model: nn.Module, turn: Turn) -> Tensor:
    loss = functional.cross_entropy(model(turn.normal(BATCH, 1, 8, 8)), torch.arange(BATCH) % 3)
    loss.backward()
    return loss.detach()


def language(model: nn.Module, turn: Turn) -> Tensor:
    tokens = turn.tokens(LanguageModel.vocabulary, BATCH, 6)
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss.detach()


def structured(model: nn.Module, turn: Turn) -> Tensor:
    y = model(turn.normal(BATCH, WIDTH))
    loss = y["left"].square().mean() + (y["right"] - 1).square().mean()
    loss.backward()
    return loss.detach()


def keywords(model: nn.Module, turn: Turn) -> Tensor:
    loss = (model(inputs=turn.normal(BATCH, WIDTH)) - 1).square().mean()
    loss.backward()
    return loss.detach()


def micro_batch(model: nn.Module, turn: Turn, part: int) -> Tensor:
    loss = square_loss(model, turn, part) / 3
    loss.backward()
    return loss.detach()


def accumulate(model: nn.Module, turn: Turn) -> Tensor:
    return torch.stack([micro_batch(model, turn, part) for part in range(3)])


def accumulate_without_sync(model: nn.Module, turn: Turn) -> Tensor:
    with turn.no_sync(model):
        losses = [micro_batch(model, turn, part) for part in (0, 1)]
    return torch.stack([*losses, micro_batch(model, turn, 2)])


def evaluate_between(model: nn.Module, turn: Turn) -> Tensor:
    loss = plain(model, turn)
    model.eval()
    with torch.no_grad():
        validation = square_loss(model, turn, part=1)
    with torch.inference_mode():
        test = square_loss(model, turn, part=2)
    model.train()
    return torch.stack([loss, validation, test.clone()])


def evaluate_before_backward(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn)
    with torch.no_grad():
        validation = square_loss(model, turn, part=1)
    loss.backward()
    return torch.stack([loss.detach(), validation])


def retain_graph(model: nn.Module, turn: Turn) -> Tensor:
    loss = square_loss(model, turn)
    loss.backward(retain_graph=True)
    loss.backward()
    return loss.detach()


def two_forwards_two_backwards(model: nn.Module, turn: Turn) -> Tensor:
    losses = [square_loss(model, turn, part) for part in (0, 1)]
    for loss in losses:
        loss.backward()
    return torch.stack(losses).detach()


def input_gradient(model: nn.Module, turn: Turn) -> Tensor:
    x = turn.normal(BATCH, WIDTH).requires_grad_()
    model(x).square().mean().backward()
    assert x.grad is not None
    return x.grad


def only_input_gradient(model: nn.Module, turn: Turn) -> Tensor:
    """Saliency: torch.autograd.grad for the input alone, then an ordinary step."""
    x = turn.normal(BATCH, WIDTH).requires_grad_()
    (saliency,) = torch.autograd.grad(model(x).square().mean(), x)
    plain(model, turn)
    return saliency


def regularize(model: nn.Module, turn: Turn) -> Tensor:
    """Reads the parameters between the root's forward and backward: whole at stages 0 to 2 only."""
    loss = square_loss(model, turn)
    loss = loss + 0.01 * sum((p.square().sum() for p in model.parameters()), torch.tensor(0.0))
    loss.backward()
    return loss.detach()


CASES = {
    "plain": Case(Chain, plain),
    "no_block_units": Case(Chain, plain, units=()),
    "odd_sizes": Case(Odd, plain),
    "batch_norm": Case(ConvNet, images),
    "tied_weights": Case(LanguageModel, language),
    "block_called_twice": Case(Chain, partial(ordered, orders=[(0, 1, 0, 2)])),
    "block_called_twice_running": Case(Chain, partial(ordered, orders=[(0, 0, 1, 2, 2)])),
    "frozen": Case(Frozen, plain),
    "never_used": Case(NeverUsed, plain),
    "blocks_in_some_steps": Case(Chain, partial(ordered, orders=[(0, 1, 2), (0, 2), (1,)])),
    "gradient_in_some_steps": Case(Gated, gated),
    "out_of_order": Case(partial(Chain, depth=4), partial(ordered, orders=[(0, 1, 2, 3), (3, 1, 2, 0), (2, 3, 0, 1)])),
    "nested_units": Case(partial(Chain, 2, Nest), plain, units=(Nest, Block)),
    "two_towers": Case(Towers, plain),
    "checkpoint_reentrant": Case(partial(Checkpointed, True, 1), plain),
    "checkpoint_reentrant_spans": Case(partial(Checkpointed, True, 2), plain),
    "checkpoint_reentrant_inside": Case(partial(Chain, 3, partial(CheckpointInBlock, True)), plain),
    "checkpoint": Case(partial(Checkpointed, False, 1), plain),
    "checkpoint_spans": Case(partial(Checkpointed, False, 2), plain),
    "checkpoint_inside": Case(partial(Chain, 3, partial(CheckpointInBlock, False)), plain),
    "tuples_and_dicts": Case(Structured, structured),
    "keywords": Case(Keywords, keywords),
    "accumulate": Case(Chain, accumulate),
    "accumulate_without_sync": Case(Chain, accumulate_without_sync),
    "evaluate_between": Case(Chain, evaluate_between),
    "evaluate_before_backward": Case(Chain, evaluate_before_backward),
    "retain_graph": Case(Chain, retain_graph),
    "two_forwards_two_backwards": Case(Chain, two_forwards_two_backwards),
    "input_gradient": Case(Chain, input_gradient),
    "only_input_gradient": Case(Chain, only_input_gradient),
    "regularize": Case(Chain, regularize, stages=(0, 1, 2)),
}
