"""Parts of a model that are called without the model, as `generate()` calls the encoder of a translator.

Blocks gather their own units. What lies between them, such as an encoder's last norm, belongs to the root's unit and is
there during the root's forward only. Outside of it, where no graph is built, the module that holds it gathers it. Where
a graph is built that is left to units=: the end of a backward could not be told from a part alone.
"""

from __future__ import annotations

import torch
from torch import nn

from aliquot.hooks import Unpicklable, call_untraced
from aliquot.passes import Passes
from aliquot.sharded import ShardedModel
from aliquot.unit import Unit


def serve_outside(model: ShardedModel) -> None:
    """Hooks the modules that hold parameters of the root's units."""
    of_root = {param: unit for unit in model.needs.get(model.root, []) for param in unit.params}
    for module in model.root.modules():
        held = {of_root[param] for param in module.parameters(recurse=False) if param in of_root}
        if held and module is not model.root and module not in model.needs:
            hooks = _OutsideHooks(model.passes, module, sorted(held, key=lambda unit: unit.index))
            module.register_forward_pre_hook(hooks.pre_forward, prepend=True)
            module.register_forward_hook(hooks.post_forward, always_call=True)


class _OutsideHooks(Unpicklable):
    """What runs before and after the forward of a module that holds parameters of `units`, which are the root's."""

    def __init__(self, passes: Passes, module: nn.Module, units: list[Unit]) -> None:
        self.passes = passes
        self.module = module
        self.units = units
        self.gathered: list[list[Unit]] = []
        """For each call under way: what was gathered for it."""

    def pre_forward(self, *_: object) -> None:
        call_untraced(self._open)

    def post_forward(self, *_: object) -> None:
        call_untraced(self._close)

    def _open(self) -> None:
        gathered: list[Unit] = []
        self.gathered.append(gathered)
        if torch.is_grad_enabled():
            return
        for unit in self.units:
            if unit.open_count == 0:
                self.passes.enter_forward(self.module)
                gathered.append(unit)
                self.passes.gather(unit)

    def _close(self) -> None:
        for unit in reversed(self.gathered.pop() if self.gathered else []):
            self.passes.give_back(unit)
            self.passes.leave_forward()
