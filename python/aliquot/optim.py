"""The fused optimizers, as torch.optim defines them, over a sharded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from aliquot import _core
from aliquot._core import InvalidArgument
from aliquot.fused import FusedOptimizer
from aliquot.sharded_optimizer import Params


class AdamW(FusedOptimizer):
    """AdamW (https://arxiv.org/abs/1711.05101), as `torch.optim.AdamW` defines it, over a sharded model.

    `params`: the model's parameters or groups of them, as in torch; all by default. Groups may differ in every
    hyperparameter. `max_grad_norm`: clips by the global norm within the step; a group that has one of its own is
    clipped by its own norm before that (`grad_norms`). `max_skipped`: an error after so many steps in a row whose
    gradients were not finite; each such step changes nothing, on any rank. `moment_bits=8`: block-wise 8-bit moments
    (https://arxiv.org/abs/2110.02861), 2 bytes a parameter instead of 8; see docs/numerics.md.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
        moment_bits: Literal[8, 32] = 32,
    ) -> None:
        if moment_bits not in (8, 32):
            raise InvalidArgument(f"{type(self).__name__}: moment_bits is {moment_bits!r}; it is 8 or 32")
        self.moment_bits = moment_bits
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _description(self, groups: list[dict[str, Any]]) -> Iterator[str]:
        yield f"moments of {self.moment_bits} bits"
        yield from super()._description(groups)

    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        rule = _core.AdamW8bit if self.moment_bits == 8 else _core.AdamW
        return rule(*_adam(group))


class Adam(AdamW):
    """Adam (https://arxiv.org/abs/1412.6980), as `torch.optim.Adam` defines it: `weight_decay` is a part of the
    gradient. `params`, `max_grad_norm`, `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        super().__init__(
            model, lr, betas, eps, weight_decay, amsgrad,
            maximize=maximize, params=params, max_grad_norm=max_grad_norm, max_skipped=max_skipped,
        )  # fmt: skip

    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        return _core.Adam(*_adam(group))


class SGD(FusedOptimizer):
    """Gradient descent, with momentum if there is any, as `torch.optim.SGD` defines it.

    Without momentum there are no states; then no group may get momentum later. `params`, `max_grad_norm`,
    `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _begin(self) -> None:
        self._has_momentum = any(group["momentum"] for group in self.param_groups)
        super()._begin()

    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        lr, momentum, dampening = float(group["lr"]), float(group["momentum"]), float(group["dampening"])
        decay, nesterov = float(group["weight_decay"]), bool(group["nesterov"])
        if nesterov and (momentum <= 0 or dampening != 0):
            raise InvalidArgument(f"SGD: nesterov takes momentum, not {momentum}, and no dampening, not {dampening}")
        if self._has_momentum:
            return _core.MomentumSgd(lr, momentum, dampening, decay, nesterov)
        if momentum:
            raise InvalidArgument(
                f"SGD: a group has momentum {momentum}, but the optimizer was made without, and so without states: "
                "make it with momentum in one group at least"
            )
        return _core.Sgd(lr, decay)


class Lion(FusedOptimizer):
    """Lion (https://arxiv.org/abs/2302.06675, algorithm 2).

    Each element moves by `lr`, so that takes a third to a tenth of AdamW's, and `weight_decay` as many times AdamW's.
    `params`, `max_grad_norm`, `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        beta1, beta2 = group["betas"]
        return _core.Lion(float(group["lr"]), float(beta1), float(beta2), float(group["weight_decay"]))


class Adagrad(FusedOptimizer):
    """Adagrad (https://jmlr.org/papers/v12/duchi11a.html), as `torch.optim.Adagrad` defines it.

    `params`, `max_grad_norm`, `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps, "maximize": maximize,
        }  # fmt: skip
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        names = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        return _core.Adagrad(*(float(group[name]) for name in names))


class LAMB(FusedOptimizer):
    """LAMB (You et al., 2020, https://arxiv.org/abs/1904.00962, algorithm 2, with phi the identity).

    An AdamW whose update of each parameter is as long as the parameter times `lr`: the ratio of their norms is taken
    over the whole parameter, of which ranks hold parts. It is 1 where one of them is zero. `params`, `max_grad_norm`,
    `max_skipped`: as for `AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        params: Params | None = None,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model, params, defaults, max_grad_norm, max_skipped)

    def _rule(self, group: dict[str, Any]) -> _core.Rule:
        return _core.Lamb(*_adam(group))


def _adam(group: dict[str, Any]) -> tuple[float, float, float, float, float]:
    beta1, beta2 = group["betas"]
    return float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"])
