"""`aliquot.graph`: whole training steps as one CUDA graph, replayed without the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from aliquot import _core
from aliquot._core import Error, InvalidArgument
from aliquot.fused import FusedOptimizer
from aliquot.sharded_optimizer import settings_of

P = ParamSpec("P")
R = TypeVar("R")
PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)
"""What else than tensors a captured step may take and return, in tuples, lists and dicts."""


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
    its arguments, which keep their shapes and which the captured `step` finds on the GPU. What else `step` reads of the
    host's stays as it was when it was captured, but for what `optimizer.param_groups` say (learning rates and all other
    hyperparameters), the loss scale and the step count. So `step` must take the same way every time, leave schedulers
    to the loop around it, and clear the gradients itself; it must not wait for the device (`.item()`, printing a
    tensor), and every rank calls it. It returns copies of the tensors that `step` returned. Losses and weights are
    bitwise those of `step` itself. On CPUs it is `step` itself. `aliquot.stats` counts gathers, reductions and times of
    the capture only.

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
    world = optimizer.model.world
    if world.device.type == "cpu":
        return step
    if world.transport != "peer":
        raise InvalidArgument(f"aliquot.graph needs the transport peer, not {world.transport}")
    return _Replayed(step, optimizer, warmup)


class _Replayed(Generic[P, R]):
    def __init__(self, step: Callable[P, R], optimizer: FusedOptimizer, warmup: int) -> None:
        self.step = step
        self.optimizer = optimizer
        self.model = optimizer.model
        self.engine = optimizer.model.engine
        self.device = optimizer.model.world.device
        self.warmup = warmup
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
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
        _require_plain("takes", leaves)
        if self.captured is None or self.made_with != self._made_with():
            self.captured = None
            self._capture(leaves, shape)
        self._take(leaves, shape)
        return self._replay()

    def _made_with(self) -> tuple[object, ...]:
        scaler = self.model.scaler
        clips = [group.get("max_grad_norm") for group in self.optimizer.param_groups]
        return clips, self.optimizer.max_grad_norm, scaler and scaler.rule

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """On the stream of the capture, so that what is allocated once is there."""
        before = torch.cuda.current_stream()
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            output = self.step(*args, **kwargs)
        before.wait_stream(self.stream)
        return output

    def _capture(self, leaves: list[Any], shape: Any) -> None:
        self.inputs = [self._kept(leaf) for leaf in leaves]
        self.shape = shape
        made_with, settings = self._made_with(), self._settings()
        args, kwargs = tree_unflatten(self.inputs, shape)
        captured, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        self.engine.renew()
        raised: BaseException | None = None
        self.model.capturing = True
        try:
            with torch.cuda.graph(captured, pool, self.stream, capture_error_mode="thread_local"):
                try:
                    self.engine.begin_capture(self.stream.cuda_stream)
                    self.output = self.step(*args, **kwargs)
                    self.engine.end_capture(self.stream.cuda_stream)
                except BaseException as error:
                    raised = error  # of which the end of a capture that was spoiled would say nothing
                    raise
        except BaseException as error:
            self._give_up(pool)
            _raise(raised or error)
        finally:
            self.model.capturing = False
        self.engine.renew()
        _require_plain("returns", tree_flatten(self.output)[0])
        if settings != self._settings():
            raise InvalidArgument(
                "param_groups changed within the captured step, which replays can't repeat: call schedulers outside "
                "of it"
            )
        self.captured, self.made_with = captured, made_with

    def _kept(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.detach().to(self.device, copy=True).requires_grad_(leaf.requires_grad)

    def _settings(self) -> list[dict[str, Any]]:
        return [settings_of(group) for group in self.optimizer.param_groups]

    def _give_up(self, pool: Any) -> None:
        """No step was done: what was captured never ran."""
        with suppress(RuntimeError, AttributeError):  # where torch has left the capture before it got so far
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        torch.cuda.synchronize()
        # A capture that ends well also takes torch's generators out of the one that did not.
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self.stream):
            torch.zeros(1, device=self.device)
        self.engine.renew()
        self.model.passes.give_up("the capture of a step failed")

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
                mine.detach().copy_(given.detach(), non_blocking=given.is_cuda)

    def _replay(self) -> R:
        assert self.captured is not None
        self.optimizer.require_ready()
        if self.model.accumulating:
            raise Error(
                "gradients of backwards outside of the captured step would be lost in it: call zero_grad() first"
            )
        self.engine.begin_replay(self.optimizer.rules(), self.model.stream())
        self.captured.replay()
        result = self.engine.end_replay(self.model.stream())
        self.model.passes.end_step()
        self.model.note_change()
        self.optimizer.note(result)
        output: R = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), self.output)
        return output


def _described(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return f"a tensor of {leaf.dtype}, {tuple(leaf.shape)}" + ", with a gradient" * leaf.requires_grad


def _require_plain(what: str, leaves: list[Any]) -> None:
    for leaf in leaves:
        if not isinstance(leaf, (torch.Tensor, *PLAIN)):
            raise InvalidArgument(
                f"a captured step {what} tensors, numbers and strings, in tuples, lists and dicts, and no "
                f"{type(leaf).__name__}: replays could not see what is in it"
            )


def _raise(error: BaseException) -> NoReturn:
    """What torch says of a capture that was spoiled, with what to do; anything else as it is."""
    known = (_core.Error, torch.OutOfMemoryError)
    if not isinstance(error, RuntimeError) or isinstance(error, known):
        raise error
    raise Error(
        f"the step can't be captured into a CUDA graph: {error}. It must not wait for the device (.item(), printing a "
        "tensor, copies to the host), and must step the optimizer once the model's backward has finished"
    ) from error
