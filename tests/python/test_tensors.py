"""What a step does to torch's objects, natively."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from aliquot._core import closed_version
from aliquot.guard import ShardedParameter
from aliquot.tensors import TENSORS, map_tensors
from aliquot.unit import Unit
from torch import nn


class Pair(NamedTuple):
    first: torch.Tensor
    second: object


@dataclass
class Output:
    logits: torch.Tensor


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    return 2 * tensor


def unit_of(count: int = 3) -> Unit:
    made = tuple(nn.Parameter(torch.ones(2, 3)) for _ in range(count))
    for param in made:
        param.__class__ = ShardedParameter
    unit = Unit(0, "unit", made, torch.float32, trainable=True, encloses_units=False)
    unit.overwritten = True
    return unit


def give(param: nn.Parameter, grad: torch.Tensor | None) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.grad.__set__(param, grad)  # type: ignore[attr-defined]


ONE = torch.ones(1)
NESTS: list[Any] = [
    ONE,
    (ONE, 3),
    [ONE, [ONE, "text"]],
    {"a": ONE, "b": (None, ONE)},
    Pair(ONE, [ONE]),
    OrderedDict(a=ONE),
    nn.Parameter(torch.ones(1)),
]


@pytest.mark.parametrize("nest", NESTS, ids=lambda nest: type(nest).__name__)
def test_every_tensor_is_changed_and_every_container_keeps_its_kind(nest: Any) -> None:
    found: list[torch.Tensor] = []
    changed = map_tensors(doubled, nest)
    map_tensors(lambda tensor: found.append(tensor) or tensor, changed)
    assert found
    assert all(tensor.item() == 2 for tensor in found)
    assert type(changed) is type(nest) or isinstance(nest, nn.Parameter)


def test_a_nest_in_which_nothing_changes_is_returned_itself() -> None:
    for nest in (NESTS[1], NESTS[2], NESTS[3]):
        assert map_tensors(lambda tensor: tensor, nest) is nest


def test_tensors_in_dataclasses_are_seen() -> None:
    found: list[torch.Tensor] = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, [Output(ONE)])
    assert found[0] is ONE


def test_what_a_change_raises_comes_out() -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise KeyError("no")

    with pytest.raises(KeyError):
        map_tensors(refuse, [{"a": (ONE,)}])


def test_opened_parameters_are_ordinary_and_closed_ones_have_versions_that_autograd_refuses() -> None:
    unit = unit_of()
    unit.open()
    assert all(type(param) is nn.Parameter and param._version == 0 for param in unit.params)
    unit.close()
    assert all(type(param) is ShardedParameter and param._version == closed_version for param in unit.params)


def test_parameters_that_stay_where_they_are_keep_their_versions() -> None:
    unit = unit_of()
    unit.overwritten = False
    unit.open()
    unit.close()
    assert all(param._version == 0 for param in unit.params)


def test_the_first_parameter_that_was_written_to_is_found() -> None:
    unit = unit_of()
    unit.open()
    unit.watch_writes()
    assert unit.written() is None
    with torch.no_grad():
        unit.params[2].add_(1)
        unit.params[1].add_(1)
    assert unit.written() == 1
    unit.close()
    unit.open()
    assert unit.written() is None, "nobody watches"


def test_a_unit_that_is_forgotten_with_what_leads_back_to_it_is_freed() -> None:
    unit = unit_of()
    unit.params[0].unit = unit  # type: ignore[attr-defined]
    gone = weakref.ref(unit)
    del unit
    gc.collect()
    assert gone() is None


def test_garbage_is_collected_while_the_first_of_a_class_is_made() -> None:
    class First(Unit):
        pass

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        unit = First(0, "unit", unit_of().params, torch.float32, trainable=True, encloses_units=False)
    finally:
        gc.set_threshold(*before)
    assert unit.name == "unit"


def test_gradients_are_found_whatever_the_class_makes_of_them() -> None:
    made = unit_of(2).params
    assert TENSORS.gradients(made) == []
    grad = torch.ones(2, 3)
    give(made[1], grad)
    assert TENSORS.gradients(made)[0] is None
    assert TENSORS.gradients(made)[1] is grad
    TENSORS.drop_gradients(made)
    assert TENSORS.gradients(made) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (None, []),
        (torch.ones(3, 2).t(), None),
        (torch.ones(2, 3).to_sparse(), None),
        (torch.ones(2, 3)._neg_view(), None),
    ],
    ids=["missing", "not contiguous", "sparse", "negated"],
)
def test_addresses_are_given_of_dense_gradients_only(other: torch.Tensor | None, said: list[int] | None) -> None:
    unit = unit_of(2)
    grads = [torch.ones(2, 3), torch.ones(2, 3)]
    for param, grad in zip(unit.params, grads, strict=True):
        give(param, grad)
    assert unit.addresses_of_gradients() == [grad.data_ptr() for grad in grads]
    give(unit.params[1], other)
    assert unit.addresses_of_gradients() == said


def test_what_was_given_is_left_as_it_was() -> None:
    for given, tensor_of in ((OrderedDict(a=ONE), dict.values), (Output(ONE), lambda output: [output.logits])):
        changed = map_tensors(doubled, given)
        assert changed is not given
        assert [tensor.item() for tensor in tensor_of(given)] == [1]
        assert [tensor.item() for tensor in tensor_of(changed)] == [2]


def test_a_container_that_holds_itself_is_an_error() -> None:
    cycle: list[object] = [ONE]
    cycle.append(cycle)
    with pytest.raises(RecursionError):
        map_tensors(doubled, cycle)
