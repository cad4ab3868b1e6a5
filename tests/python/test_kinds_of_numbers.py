"""Parameters that are not floating-point numbers: complex ones train, integers and bytes are kept to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import aliquot
import pytest
import torch
from architectures import ARCHITECTURES, NeuralOperator, QuantizedLinear, Stack
from ranks import PROCESS_GROUP, SHARED_MEMORY, TRANSPORTS, Transport, run_ranks
from torch import Tensor, nn
from training import STAGES, Sharded, assert_same_bits, built

KINDS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn]
BOTH = ("quantized base, int8", "neural operator, complex weights")


class Kinds(nn.Module):
    """A frozen parameter of each kind, of odd sizes, every byte of it random, beside one that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        for size, kind in enumerate(KINDS, start=3):
            values = torch.randint(0, 2 if kind == torch.bool else 256, (size * kind.itemsize,), dtype=torch.uint8)
            self.register_parameter(str(kind)[6:], nn.Parameter(values.view(kind), requires_grad=False))
        parts = torch.randn(5, 2, dtype=torch.float64)
        self.complex128 = nn.Parameter(torch.view_as_complex(parts), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 2, dtype=torch.int16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).sum() * self.int8.double().mean() * self.complex128.real.sum()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().flatten().view(torch.uint8) for name, value in model.state_dict().items()}


def keep(rank: int, stage: int) -> None:
    torch.manual_seed(0)
    model = Kinds()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = bits(model)
    sharded = aliquot.shard(model, stage=stage)
    optimizer = aliquot.AdamW(sharded)
    sharded(torch.ones(3)).backward()
    optimizer.step()
    with aliquot.gathered(sharded):
        found = {name: param.detach().clone().flatten().view(torch.uint8) for name, param in sharded.named_parameters()}
    assert not torch.equal(found.pop("scale"), expected.pop("scale"))
    assert_same_bits(found, expected)
    state = aliquot.full_state_dict(sharded, all_ranks=True)
    assert {name: value.dtype for name, value in state.items()} == {n: value.dtype for n, value in before.items()}
    changed = {name: torch.cat([value[1:], value[:1]]) for name, value in state.items()}
    aliquot.load_full_state_dict(sharded, changed)
    loaded = aliquot.full_state_dict(sharded, all_ranks=True)
    for name, value in changed.items():
        assert torch.equal(value.flatten().view(torch.uint8), loaded[name].flatten().view(torch.uint8)), name


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_frozen_kinds_are_kept_to_the_bit(stage: int, transport: Transport) -> None:
    run_ranks(2, keep, stage, transport=transport)


def on_transport(rank: int, name: str) -> dict[str, Tensor]:
    sharded = Sharded(ARCHITECTURES[name], 3)
    for step in range(3):
        sharded.step(rank, step)
    return sharded.weights()


@pytest.mark.parametrize("name", BOTH)
def test_transports_give_the_same_bits(name: str) -> None:
    (one, _), (other, _) = (run_ranks(2, on_transport, name, transport=t) for t in (SHARED_MEMORY, PROCESS_GROUP))
    assert_same_bits(one, other)


def gradients(rank: int, stage: int) -> None:
    sharded = Sharded(ARCHITECTURES["neural operator, complex weights"], stage)
    sharded.backward(rank, 0)
    weight = sharded.model.layers[0].weight
    assert weight.dtype == weight.grad.dtype == torch.complex64
    assert weight.shape == weight.grad.shape


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_complex_parameters_are_complex(stage: int) -> None:
    run_ranks(2, gradients, stage)


def fill_scale(layer: QuantizedLinear) -> None:
    nn.init.ones_(layer.scale)


def from_meta(rank: int) -> None:
    with torch.device("meta"):
        model = Stack(QuantizedLinear)
    for layer in model.layers:
        assert isinstance(layer, QuantizedLinear)
        layer.reset_parameters = partial(fill_scale, layer)
    sharded = aliquot.shard(model)
    reference = built(ARCHITECTURES["quantized base, int8"])
    aliquot.load_full_state_dict(sharded, reference.state_dict())
    assert_same_bits(aliquot.full_state_dict(sharded, all_ranks=True), reference.state_dict())


def test_integers_on_the_meta_device() -> None:
    run_ranks(2, from_meta)


class Wrapped(nn.Parameter):
    pass


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


def wrapped() -> nn.Module:
    model = nn.Linear(3, 3)
    model.weight = Wrapped(model.weight.detach())
    return model


def complex_of_64_bits() -> nn.Module:
    return NeuralOperator().to(torch.complex128)


def refuse(_: int, build: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(aliquot.InvalidArgument, match=named):
        aliquot.shard(build())


@pytest.mark.parametrize(
    ("build", "named"),
    [(lazy, "UninitializedParameter"), (wrapped, "Wrapped"), (complex_of_64_bits, "complex64")],
    ids=["lazy", "wrapped", "complex128"],
)
def test_what_does_not_fit_is_refused_by_name(build: Callable[[], nn.Module], named: str) -> None:
    run_ranks(1, refuse, build, named)
