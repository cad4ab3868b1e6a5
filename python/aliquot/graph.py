"""`aliquot.graph`: whole training steps as one CUDA graph, replayed without the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from aliquot._core import Error, InvalidArgument
from aliquot.fused import FusedOptimizer

P = ParamSpec("P")
R = TypeVar("R")


def graph(step: Callable[P, R], optimizer: FusedOptimizer, warmup: int = 3) -> Callable[P, R]:
    """`step`, a function that does one or several whole training steps, such that the host gives them at once.

        @partial(aliquot.graph, optimizer=opt)
        def step(tokens, labels):
            opt.zero_grad()
            loss = model(tokens, labels)
            loss.backward()
            opt.step()
            return loss

    Each call trains. The first `warmup` run as they are; the next is captured into a CUDA graph
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), and replayed from then on with the tensors of
    its arguments, which keep their shapes and which `step` finds on the GPU. What else `step` reads of the host's stays
    as it was when it was captured, but for what `optimizer.param_groups` say (learning rates and all other
    hyperparameters), the loss scale and the step count. `step` must not wait for the device (`.item()`, printing a
    tensor), must take the same way every time, and every rank calls it. It returns copies of the tensors that `step`
    returned. Losses and weights are bitwise those of `step` itself. On CPUs it is `step` itself.

    Needs the transport `peer` (or a GPU that is alone), a fused optimizer (such as `aliquot.AdamW`) that is stepped in
    `step`, and no other optimizer there.
    """
    if not isinstance(optimizer, FusedOptimizer):
        raise InvalidArgument(
            f"aliquot.graph takes a fused optimizer such as aliquot.AdamW, not a {type(optimizer).__name__}: of others "
            "the host waits for the gradients' norm, or does a part of the step"
        )
    if warmup < 1:
        raise InvalidArgument(f"warmup is {warmup}; a step must have run once before it can be captured")
    if optimizer.model.world.device.type == "cpu":
        return step
    return _Replayed(step, optimizer, warmup)


class _Replayed(Generic[P, R]):
    def __init__(self, step: Callable[P, R], optimizer: FusedOptimizer, warmup: int) -> None:
        self.step = step
        self.optimizer = optimizer
        self.engine = optimizer.model.engine
        self.warmup = warmup
        self.stream = torch.cuda.Stream(optimizer.model.world.device)  # type: ignore[no-untyped-call]
        self.captured: torch.cuda.CUDAGraph | None = None
        self.made_with: tuple[object, ...] = ()
        """What a replay can't follow: where it differs, the step is captured anew."""
        self.inputs: list[Any]
        """The leaves of the arguments at the capture; tensors are copies, which replays read."""
        self.shape: Any
        self.output: Any
        """What the captured step returned; replays write its tensors."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.warmup:
            self.warmup -= 1
            return self._run(*args, **kwargs)
        self.optimizer.require_current()
        leaves, shape = tree_flatten((args, kwargs))
        made_with = (len(self.optimizer.param_groups), self.optimizer.max_grad_norm)
        if self.captured is None or made_with != self.made_with:
            self.captured = None
            self._capture(leaves, shape)
            self.made_with = made_with
        self._take(leaves, shape)
        return self._replay()

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """On the stream of the capture, so that what is allocated once is there."""
        before = torch.cuda.current_stream()
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            output = self.step(*args, **kwargs)
        before.wait_stream(self.stream)
        return output

    def _capture(self, leaves: list[Any], shape: Any) -> None:
        device = self.optimizer.model.world.device
        self.inputs = [
            leaf.detach().to(device, copy=True) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves
        ]
        self.shape = shape
        args, kwargs = tree_unflatten(self.inputs, shape)
        captured = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        self.engine.renew()
        try:
            with torch.cuda.graph(captured, stream=self.stream, capture_error_mode="thread_local"):
                self.engine.begin_capture(self.stream.cuda_stream)
                self.output = self.step(*args, **kwargs)
                self.engine.end_capture(self.stream.cuda_stream)
        except Exception as error:
            self._give_up()
            if not isinstance(error, RuntimeError):
                raise
            raise Error(
                f"the step can't be captured into a CUDA graph: {error}. It must not wait for the device (.item(), "
                "printing a tensor, copies to the host), and must step the optimizer once the model's backward has "
                "finished"
            ) from error
        self.engine.renew()
        self.captured = captured

    def _give_up(self) -> None:
        """No step was done: what was captured never ran."""
        torch.cuda.synchronize()
        self.engine.renew()
        self.optimizer.model.passes.give_up("the capture of a step failed")

    def _take(self, leaves: list[Any], shape: Any) -> None:
        if shape != self.shape:
            raise InvalidArgument(f"the captured step took arguments of the form {self.shape}, not {shape}")
        for number, (mine, given) in enumerate(zip(self.inputs, leaves, strict=True)):
            if _described(mine) != _described(given):
                raise InvalidArgument(
                    f"argument {number} of a captured step was {_described(mine)} when it was captured, and is now "
                    f"{_described(given)}. Give numbers as tensors; steps of other shapes need an aliquot.graph of "
                    "their own"
                )
            if isinstance(mine, torch.Tensor):
                mine.copy_(given, non_blocking=True)

    def _replay(self) -> R:
        assert self.captured is not None
        model = self.optimizer.model
        self.engine.begin_replay(self.optimizer.rules(), model.stream())
        self.captured.replay()
        result = self.engine.end_replay(model.stream())
        model.note_change()
        self.optimizer.note(result)
        output: R = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), self.output)
        return output


def _described(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return f"a tensor of {leaf.dtype}, {tuple(leaf.shape)}"
