"""Optimizers with kernels of their own: one pass over the shards, and on a device no wait of the host."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from aliquot import _core
from aliquot._core import Error, InvalidArgument
from aliquot.checkpoint.parts import Memory, Plain, Quantized
from aliquot.checkpoint.putting import Putting
from aliquot.places import Place
from aliquot.sharded_optimizer import ShardedOptimizer
from aliquot.states import QuantizedState, Scalars, State, steps_of

NO_GROUP = -1


class FusedOptimizer(ShardedOptimizer):
    """Steps by an update rule of the core (`aliquot/rules.h`), whose states the store holds."""

    keeps_loaded = False

    @abstractmethod
    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        """Of a parameter group, as it is now."""

    def _begin(self) -> None:
        rule, *_ = [self._possible_rule(*numbered) for numbered in enumerate(self.param_groups)]
        self.model.engine.set_groups(self._grouping(), rule)
        self.state_names = frozenset(rule.states)
        self.model.fused = weakref.ref(self)

    def _extend(self, group: dict[str, Any]) -> None:
        self._possible_rule(len(self.param_groups) - 1, group)
        self.require_current()
        self.model.engine.regroup(self._grouping())

    def _possible_rule(self, number: int, group: dict[str, Any]) -> _core.Rule:
        require_possible(type(self).__name__, number, group)
        return self._rule(group)

    def require_settings(self, number: int, group: dict[str, Any]) -> None:
        """Whatever has a kernel's rule, and can be one."""
        super().require_settings(number, group)
        self._possible_rule(number, group)

    def require_current(self) -> None:
        """Refuses to step where the states are another optimizer's."""
        if self.model.fused is None or self.model.fused() is not self:
            name = type(self).__name__
            raise Error(
                f"another fused optimizer was made for this model since, and has taken the place of this {name}'s "
                f"states. Give one optimizer all groups (params=[{{...}}, {{...}}]), or step some with "
                "aliquot.TorchOptimizer"
            )

    def _update(self) -> _core.StepResult:
        self.require_current()
        return self.model.engine.step(self.rules(), self.max_grad_norm, self.model.stream())

    def rules(self) -> list[_core.Rule]:
        """What the groups say now, as the core takes it; behind require_ready()."""
        return [self._rule(group) for group in self.param_groups]

    def _norm_of_step(self) -> torch.Tensor:
        """As of every optimizer. On a device asking for it does not wait."""
        if address := self.model.engine.device_state():
            return self.model.tensor_at(address, (), torch.float64).float()
        return super()._norm_of_step()

    def _skips_in_a_row(self, result: _core.StepResult) -> int:
        """On a device the result may be of an earlier step than the last: the host does not wait."""
        return result.skipped_in_a_row if self.model.engine.device_state() else super()._skips_in_a_row(result)

    def states(self) -> Iterator[State | QuantizedState]:
        """The moments, of what this rank saves."""
        self.require_current()
        for place, begin, role, memory in self._moments(self.model.engine.states_to_save):
            if isinstance(memory, Quantized):
                yield QuantizedState(role, place, begin, memory)
            else:
                yield State(role, place, begin, memory.elements)

    def scalars(self) -> Scalars:
        """How often each parameter was stepped."""
        steps = self.model.engine.param_steps(self.model.stream())
        return {place.name: {"steps": steps[place.unit.index][place.index]} for place in self.places()}

    def prepare(self, states: Iterable[State], scalars: Scalars) -> Callable[[], None]:
        """See ShardedOptimizer."""
        self.require_current()
        putting = Putting(self.model.world)
        given = {(state.name, state.place): state for state in states}
        steps = self.model.engine.param_steps(self.model.stream())
        for place in self.places():
            if place.unit.trainable:
                steps[place.unit.index][place.index] = steps_of(scalars, place)

        def values() -> Iterator[tuple[Memory, torch.Tensor]]:
            for place, begin, role, memory in self._moments(self.model.engine.states_to_load):
                if (state := given.get((role, place))) is not None:
                    first = begin - state.begin
                    yield memory, state.value[first : first + memory.numel()]
                else:
                    yield memory, torch.zeros(memory.numel(), device="cpu")

        def put() -> None:
            putting.put(values())
            self.model.engine.set_param_steps(steps, self.model.stream())

        return put

    def _moments(
        self, parts_of: Callable[[int, str], list[tuple[int, int, int, int, int]]]
    ) -> Iterator[tuple[Place, int, str, Plain | Quantized]]:
        """Place, first element, role and memory of the parts that the engine names."""
        places = set(self.places())
        for unit in self.model.units:
            for role in sorted(self.state_names or ()) if unit.trainable else ():
                for index, begin, numel, address, scales in parts_of(unit.index, role):
                    if (place := unit.places[index]) in places:
                        yield place, begin, role, self._memory(role, numel, address, scales)

    def _memory(self, role: str, numel: int, address: int, scales: int) -> Plain | Quantized:
        if not scales:
            return Plain(self.model.tensor_at(address, (numel,), torch.float32))
        blocks = -(-numel // _core.quantization_block)
        codes = self.model.tensor_at(address, (numel,), torch.uint8)
        return Quantized(role, codes, self.model.tensor_at(scales, (blocks,), torch.float32))

    def _grouping(self) -> list[list[int]]:
        grouping = [[NO_GROUP] * len(unit.params) for unit in self.model.units]
        for number, group in enumerate(self.param_groups):
            for param in group["params"]:
                place = self._place_of(param)
                grouping[place.unit.index][place.index] = number
        return grouping


NOT_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value")
REFUSED = ("amsgrad", "maximize")
LARGEST = torch.finfo(torch.float32).max


def require_possible(name: str, number: int, group: dict[str, Any]) -> None:
    """Refuses hyperparameters of `param_groups[number]` that can't be right, and those that have no kernel."""
    for key in NOT_NEGATIVE:
        if key in group and not is_between(0, group[key], LARGEST):
            raise impossible(name, number, group, key, "a finite number that is not negative")
    if "dampening" in group and not is_between(-LARGEST, group["dampening"], LARGEST):
        raise impossible(name, number, group, "dampening", "a finite number")
    if "betas" in group and not _are_betas(group["betas"]):
        raise impossible(name, number, group, "betas", "two numbers, each at least 0 and less than 1")
    for key in REFUSED:
        if group.get(key):
            raise InvalidArgument(
                f"{name} has no {key}; aliquot.TorchOptimizer(model, torch.optim.{name}, {key}=True) steps with it"
            )


def impossible(name: str, number: int, group: dict[str, Any], key: str, right: str) -> InvalidArgument:
    """What a hyperparameter that can't be right is refused with."""
    return InvalidArgument(f"{name}: {key} is {group[key]!r:.100} in param_groups[{number}]; set it to {right}")


def is_between(least: float, value: Any, most: float) -> bool:
    """False also of what is no number, or several."""
    try:
        return bool(least <= value <= most)
    except (TypeError, ValueError, RuntimeError):
        return False


def _are_betas(value: Any) -> bool:
    try:
        first, second = value
        return bool(0 <= first < 1 and 0 <= second < 1)
    except (TypeError, ValueError, RuntimeError):
        return False
