"""Aliquot trains PyTorch models whose parameters, gradients and optimizer states are partitioned over the ranks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from aliquot._core import (
    CheckpointError,
    CommunicatorError,
    DeviceError,
    Error,
    InvalidArgument,
    OutOfMemory,
    PeerLost,
    __version__,
)
from aliquot.clip import clip_grad_norm_
from aliquot.control import no_sync, reset_step
from aliquot.graph import graph
from aliquot.muon import Muon
from aliquot.optim import LAMB, SGD, Adagrad, Adam, AdamW, Lion
from aliquot.precision import Precision
from aliquot.profile import Profile, Times, profile
from aliquot.scaler import GradScaler
from aliquot.shard import shard
from aliquot.stats import Stats, stats
from aliquot.stopping import request_stop, should_stop
from aliquot.torch_optimizer import TorchOptimizer
from aliquot.values import full_state_dict, gathered, load_full_state_dict
from aliquot.world import World, init

if TYPE_CHECKING:
    from aliquot.checkpoint.load import Loaded, load_checkpoint
    from aliquot.checkpoint.save import save_checkpoint
    from aliquot.interchange.model import load_dcp, load_pretrained, save_dcp, save_pretrained

_LATER = {
    "checkpoint.load": ("Loaded", "load_checkpoint"),
    "checkpoint.save": ("save_checkpoint",),
    "interchange.model": ("load_dcp", "load_pretrained", "save_dcp", "save_pretrained"),
}


def __getattr__(name: str) -> object:
    """Checkpoints need pydantic, which is not imported before they are asked for."""
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"aliquot.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CheckpointError",
    "CommunicatorError",
    "DeviceError",
    "Error",
    "GradScaler",
    "InvalidArgument",
    "Lion",
    "Loaded",
    "Muon",
    "OutOfMemory",
    "PeerLost",
    "Precision",
    "Profile",
    "Stats",
    "Times",
    "TorchOptimizer",
    "World",
    "__version__",
    "clip_grad_norm_",
    "full_state_dict",
    "gathered",
    "graph",
    "init",
    "load_checkpoint",
    "load_dcp",
    "load_full_state_dict",
    "load_pretrained",
    "no_sync",
    "profile",
    "request_stop",
    "reset_step",
    "save_checkpoint",
    "save_dcp",
    "save_pretrained",
    "shard",
    "should_stop",
    "stats",
]
