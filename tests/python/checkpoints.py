"""Checkpoints in tests: a model that has everything, what a checkpoint holds, read without Aliquot, and what fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aliquot
import pytest
import torch
from models import WIDTH, Block
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from training import ADAMW, MAX_NORM, Turn

VOCABULARY = 11


class Running(nn.Module):
    """Takes off a mean that each rank keeps of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.flatten(0, -2).mean(0).to(self.mean), 0.1)
            self.seen += len(x)
        return x - self.mean.to(x)


class Everything(nn.Module):
    """Tied, frozen, complex, integer and empty parameters, sizes that no world divides, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.blocks[1].requires_grad_(False)
        self.running = Running()
        self.odd = nn.Linear(WIDTH, 13, bias=False)
        self.back = nn.Linear(13, WIDTH)
        self.phase = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))
        self.codes = nn.Parameter(torch.randint(-9, 9, (37,), dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.unused = nn.Parameter(torch.ones(7))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = (
            self.back(self.odd(self.running(x)))
            + (self.phase.abs() * self.scale).to(x.dtype)
            + self.codes.sum().to(x.dtype)
        )
        return self.head(x) + self.empty.sum()


def everything(
    stage: int,
    seed: int = 0,
    precision: Any = None,
    make: Callable[..., Any] = aliquot.AdamW,
    replicas: Any = 1,
    **settings: Any,
) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    model = aliquot.shard(Everything(), stage=stage, precision=precision, replicas=replicas)
    return model, make(model, **{**ADAMW, "max_grad_norm": MAX_NORM, **settings})


def train(model: Any, optimizer: Any, rank: int, steps: range) -> list[Tensor]:
    return [train_step(model, optimizer, rank, step) for step in steps]


def train_step(model: Any, optimizer: Any, rank: int, step: int) -> Tensor:
    optimizer.zero_grad()
    loss = backward(model, rank, step)
    optimizer.step()
    return loss


def backward(model: Any, rank: int, step: int) -> Tensor:
    tokens = Turn(rank, step).tokens(VOCABULARY, 4, 5)
    loss = functional.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())
    loss.backward()
    return loss.detach()


def manifest_of(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return manifest


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Whole, by safetensors' own reader and the manifest."""
    manifest = manifest_of(path)
    files = {name: safe_open(path / name, "pt") for name in manifest["files"]}
    whole = {}
    for key, tensor in manifest["tensors"].items():
        pieces = [files[piece["file"]].get_tensor(key).flatten() for piece in tensor["pieces"]]
        whole[key] = (torch.cat(pieces) if pieces else torch.empty(0)).view(tensor["shape"])
    return whole


def content_of(path: Path) -> dict[str, Any]:
    """What must be the same, whoever saved it."""
    manifest = manifest_of(path)
    whats = ("step", "tied", "gradients", "step_counts", "optimizers", "schedulers", "scaler", "extra")
    return {what: manifest[what] for what in whats} | {"tensors": tensors_of(path)}


def assert_same_content(actual: Mapping[str, Any], expected: Mapping[str, Any], but: str = "nothing") -> None:
    """Bit by bit. `but`: keys of tensors that begin so don't count."""
    assert {key for key in actual["tensors"] if not key.startswith(but)} == {
        key for key in expected["tensors"] if not key.startswith(but)
    }
    for key, tensor in expected["tensors"].items():
        if not key.startswith(but):
            same = actual["tensors"][key]
            assert (same.dtype, same.shape) == (tensor.dtype, tensor.shape), key
            assert torch.equal(bits(same), bits(tensor)), key
    for what in expected.keys() - {"tensors"}:
        assert actual[what] == expected[what], what


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(aliquot.CheckpointError) as caught:
        call()
    return str(caught.value)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def contents(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class Broken:
    """A scheduler, or loader, that raises on one rank."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken
        self.state = {"place": 3}

    def state_dict(self) -> dict[str, int]:
        if self.broken:
            raise ValueError("no state")
        return dict(self.state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["place"] == 7:
            raise ValueError("not there")
        self.state = dict(state)
