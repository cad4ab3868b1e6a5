"""Which parameters are gathered together, and during which modules' forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from aliquot._core import InvalidArgument
from aliquot.precision import NAMES, Precision
from aliquot.words import dtype_in_unit

Units = Sequence[type[nn.Module]] | Sequence[nn.Module] | None

LARGE_LEAF_FRACTION = 1 / 16
"""A module outside repeated blocks is a unit of its own from this part of the largest block (or the model) on."""

CALLS_NO_CHILDREN = (nn.MultiheadAttention,)
"""Modules that use their children's parameters without calling the children."""


@dataclass(eq=False)
class Group:
    """Parameters of one unit, alike in dtype and in whether they train."""

    name: str
    names: list[str]
    params: list[nn.Parameter]
    dtype: torch.dtype
    trainable: bool
    encloses_units: bool


@dataclass
class Plan:
    """All groups of a model, and which of them each module needs while it runs forward."""

    groups: list[Group] = field(default_factory=list)
    needs: dict[nn.Module, list[Group]] = field(default_factory=dict)


def plan_units(model: nn.Module, units: Units, precision: Precision) -> Plan:
    """Assigns every parameter to the innermost unit around it, the root being the outermost."""
    modules = _automatic(model) if units is None else _chosen(model, units)
    unit_of = dict(_innermost_units(model, set(modules) | {model}))
    names = {module: name for name, module in model.named_modules()}
    kept = {param for module in precision.kept_in(model) for param in module.parameters()}
    members: dict[nn.Module, list[tuple[str, nn.Parameter]]] = {}
    owner: dict[nn.Parameter, nn.Module] = {}
    for name, param in model.named_parameters():
        owner[param] = unit_of[model.get_submodule(name.rpartition(".")[0])]
        members.setdefault(owner[param], []).append((name, param))
    plan = Plan()
    for module, params in members.items():
        encloses = any(other is not module and unit_of[other] is not module for other in module.modules())
        plan.needs[module] = _groups(names[module] or "root", params, precision, kept, encloses)
        plan.groups += plan.needs[module]
    _share(model, unit_of, plan)
    return plan


def _groups(
    name: str,
    params: list[tuple[str, nn.Parameter]],
    precision: Precision,
    kept: set[nn.Parameter],
    encloses_units: bool,
) -> list[Group]:
    alike: dict[tuple[bool, torch.dtype], list[tuple[str, nn.Parameter]]] = {}
    for param_name, param in params:
        dtype = dtype_in_unit(param_name, param, precision, param in kept)
        alike.setdefault((param.requires_grad, dtype), []).append((param_name, param))
    dtypes = {dtype for _, dtype in alike}
    groups = []
    for (trainable, dtype), chosen in sorted(alike.items(), key=lambda item: not item[0][0]):
        label = name + " (frozen)" * (not trainable) + f" ({_label(dtype)})" * (len(dtypes) > 1)
        groups.append(Group(label, [n for n, _ in chosen], [p for _, p in chosen], dtype, trainable, encloses_units))
    return groups


def _label(dtype: torch.dtype) -> str:
    return NAMES.get(dtype, str(dtype).removeprefix("torch."))


def _share(model: nn.Module, unit_of: dict[nn.Module, nn.Module], plan: Plan) -> None:
    """Lets modules that hold a parameter of another unit (tied weights) gather that unit too."""
    group_of = {param: group for group in plan.groups for param in group.params}
    for module in model.modules():
        for param in module._parameters.values():
            if param is None or group_of[param] in plan.needs.get(unit_of[module], []):
                continue
            user = module if unit_of[module] is model else unit_of[module]
            needed = plan.needs.setdefault(user, [])
            if group_of[param] not in needed:
                needed.append(group_of[param])


def _innermost_units(model: nn.Module, units: set[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module]]:
    pending = [(model, model)]
    while pending:
        module, unit = pending.pop()
        unit = module if module in units else unit
        yield module, unit
        pending += [(child, unit) for child in module.children()]


def _chosen(model: nn.Module, units: Sequence[type[nn.Module]] | Sequence[nn.Module]) -> list[nn.Module]:
    if not isinstance(units, Sequence):
        raise InvalidArgument(f"units is {units!r:.200}; it is a list of module classes, or of modules of the model")
    inside = set(model.modules())
    found: list[nn.Module] = []
    for unit in units:
        if isinstance(unit, type):
            matches = [module for module in model.modules() if isinstance(module, unit)]
        else:
            matches = [unit] if unit in inside else []
        if not matches:
            raise InvalidArgument(f"units: {unit!r:.200} is not in the model; give module classes or modules of it")
        found += matches
    return found


def _automatic(model: nn.Module) -> list[nn.Module]:
    """The blocks of repeated structures, then large modules outside them that are called on their own."""
    blocks: list[nn.Module] = []
    outside: list[nn.Module] = []
    _walk(model, blocks, outside)
    largest = max(map(_numel, blocks), default=_numel(model))
    return blocks + [leaf for leaf in outside if leaf is not model and _numel(leaf) >= LARGE_LEAF_FRACTION * largest]


def _walk(module: nn.Module, blocks: list[nn.Module], outside: list[nn.Module]) -> None:
    repeated = _repeated_children(module)
    blocks += repeated
    children = [] if isinstance(module, CALLS_NO_CHILDREN) else list(module.children())
    if _is_called(module) and not any(map(_numel, children)) and _numel(module):
        outside.append(module)
        return
    for child in children:
        if child not in repeated:
            _walk(child, blocks, outside)


def _repeated_children(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return []
    children = [child for child in module.children() if _is_called(child) and _numel(child)]
    kinds = [type(child) for child in children]
    return [child for child in children if kinds.count(type(child)) > 1]


def _is_called(module: nn.Module) -> bool:
    """Whether the module has a forward; containers such as ModuleList and ParameterList have none."""
    return type(module).forward is not nn.Module.forward


def _numel(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())
