"""Tiny modules with the shapes that break sharded training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH = 8


class Block(nn.Module):
    """Residual, so that it may be skipped, repeated and reordered."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(self.norm(x))))
        return x + y


class Chain(nn.Module):
    """Blocks between two linear layers, run in the order given."""

    def __init__(self, depth: int = 3, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, order: Sequence[int] | None = None) -> Tensor:
        x = self.first(x)
        for i in range(len(self.blocks)) if order is None else order:
            x = self.blocks[i](x)
        return self.last(x)


class Odd(nn.Module):
    """Sizes 0, 1, primes, smaller than the world, and no dimension at all."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.empty(0))
        self.first = nn.Linear(WIDTH, 13)
        self.middle = nn.Sequential(nn.Linear(13, 1), nn.Tanh(), nn.Linear(1, 7, bias=False))
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)) * self.scale) + self.empty.sum()


class ConvNet(nn.Module):
    """Batch norm carries buffers, an integer among them. No bias before it: its gradient would be rounding noise."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 5, 3, bias=False),
            nn.BatchNorm2d(5),
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.gelu(self.features(x)).mean((2, 3)))


class LanguageModel(nn.Module):
    """Embedding and head are one parameter."""

    vocabulary = 13

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.vocabulary, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(WIDTH, self.vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Frozen(Chain):
    """One block frozen as a whole, another in part."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].requires_grad_(False)
        for name in ("norm.weight", "up.bias"):
            self.blocks[1].get_parameter(name).requires_grad_(False)


class NeverUsed(Chain):
    """A parameter that no forward touches: no decay may touch it either."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(5))
        self.blocks[1].unused = nn.Parameter(torch.ones(3))


class Gated(Chain):
    """Each block has a gate that only some steps use, beside parameters that all steps use."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(Gate() for _ in range(2))

    def forward(self, x: Tensor, gated: bool) -> Tensor:
        x = self.first(x)
        for gate in self.gates:
            x = gate(x, gated)
        return self.last(x)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.gate = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor, gated: bool) -> Tensor:
        y: Tensor = self.block(x)
        return y * self.gate if gated else y


class Nest(nn.Module):
    """A unit around units, with parameters of its own before, between and after them."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.ones(WIDTH))
        self.inner = nn.ModuleList(Block() for _ in range(2))
        self.between = nn.Linear(WIDTH, WIDTH)
        self.after = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner[0](x * self.before)
        return self.inner[1](self.between(x)) * self.after


class Towers(nn.Module):
    """Two chains whose steps alternate and which look at each other, so that their backwards interleave."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.left = nn.ModuleList(Block() for _ in range(depth))
        self.right = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flip(-1)
        for i, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            x, y = left(x), right(y)
            if i == 1:
                x, y = x + torch.tanh(y), y * torch.tanh(x)
        return x + y


class Checkpointed(Chain):
    """`span` blocks in each checkpoint."""

    def __init__(self, use_reentrant: bool, span: int) -> None:
        super().__init__(depth=4)
        self.span = span
        self.checkpoint = partial(checkpoint, use_reentrant=use_reentrant)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for begin in range(0, len(self.blocks), self.span):
            x = self.checkpoint(self.run_span, x, begin)
        return self.last(x)

    def run_span(self, x: Tensor, begin: int) -> Tensor:
        for block in self.blocks[begin : begin + self.span]:
            x = block(x)
        return x


class CheckpointInBlock(Block):
    """The unit itself checkpoints its inside, as many published models do."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.use_reentrant)


class PairBlock(nn.Module):
    """In and out: tensors inside a dict inside a tuple, with things that are not tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left = Block()
        self.right = nn.Linear(WIDTH, WIDTH)

    def forward(self, state: tuple[dict[str, Tensor], int]) -> tuple[dict[str, Tensor], int]:
        values, count = state
        return {"left": self.left(values["left"]), "right": self.right(values["left"] + values["right"])}, count + 1


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PairBlock() for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        state: tuple[dict[str, Tensor], int] = ({"left": x, "right": torch.zeros_like(x)}, 0)
        for block in self.blocks:
            state = block(state)
        assert state[1] == len(self.blocks)
        return state[0]


class KeywordBlock(Block):
    def forward(self, *, x: Tensor, scale: float) -> Tensor:
        return super().forward(x) * scale


class Keywords(nn.Module):
    """Nothing is passed by position, to the root or to a block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(KeywordBlock() for _ in range(2))

    def forward(self, *, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(x=inputs, scale=0.5)
        return inputs


class WeightByName(LanguageModel):
    """The root reads a unit's parameter without calling the unit's module."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return functional.linear(x, self.embedding.weight)
