"""Load what one stage of a pipeline needs of a model, and never hold the rest.

Where the weights are a safetensors file, only the stage's tensors are read. Random weights, and files of other kinds,
are loaded whole and what isn't the stage's is dropped: the numbers are the same, the peak is the whole model's.
"""

import hashlib
import logging
from collections import defaultdict
from typing import Any, NamedTuple

import msgspec
import torch
from accelerate import init_empty_weights
from torch import nn

from prism.errors import InputError
from prism.nn.families import adapter_for
from prism.nn.weights.checkpoint import Checkpoint
from prism.nn.zoo import Loaded, described, fingerprint, load_model, safetensors_of
from prism.plan import ExecutionPlan

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """What of a model a stage needs: the blocks [first, stop), and what comes before and behind all blocks."""

    first: int
    stop: int
    embedding: bool
    head: bool

    def keeps(self, owner: int, blocks: int) -> bool:
        """Whether it has a parameter. owner: as Adapter.owner has it."""
        if owner < 0:
            return self.embedding
        return self.head if owner >= blocks else self.first <= owner < self.stop


class Partial(NamedTuple):
    """A model that holds one share, and the fingerprint of the whole."""

    loaded: Loaded
    fingerprint: str


def share_of(plan: ExecutionPlan, rank: int, blocks: int) -> Share:
    """The share of a rank's stage. The leader of replicas embeds and answers by its own stages alone."""
    place = plan.place(rank)
    first, stop = plan.replica(place.replica).stage_blocks(blocks)[place.stage]
    return Share(first, stop, embedding=place.stage == 0, head=place.stage == plan.stages - 1)


def load_share(
    name: str, weights: str | None, seed: int, device: torch.device, plan: ExecutionPlan, rank: int
) -> Partial:
    """Load the share of a rank's stage. Raises InputError, PlanError, UnsupportedModelError."""
    if files := safetensors_of(name, weights):
        with init_empty_weights(include_buffers=False):
            loaded = load_model(name, "random", seed)
        try:
            print_ = _filled(loaded.model, Checkpoint(files), device, plan, rank)
        except _RenamedError as error:
            log.info("%s; the model is loaded whole, and what isn't the stage's is dropped", error)
        else:
            return Partial(msgspec.structs.replace(loaded, weights=weights or name), print_)
    loaded = load_model(name, weights, seed, str(device))
    print_ = fingerprint(loaded.model)
    for path, parameter in _others(loaded.model, plan, rank):
        _set(loaded.model, path, torch.empty_like(parameter, device="meta"))
    return Partial(loaded, print_)


def _others(model: nn.Module, plan: ExecutionPlan, rank: int, kept: bool = False) -> list[tuple[str, nn.Parameter]]:
    """Parameters by path that a rank's stage doesn't need; those it does need where `kept` is asked for."""
    adapter = adapter_for(model)
    blocks = adapter.spec.blocks
    share = share_of(plan, rank, blocks)
    named = model.named_parameters(remove_duplicate=False)
    return [(path, value) for path, value in named if share.keeps(adapter.owner(path), blocks) == kept]


def _filled(model: Any, checkpoint: Checkpoint, device: torch.device, plan: ExecutionPlan, rank: int) -> str:
    """Fill a model of empty parameters with a share's, and return the fingerprint of the whole model."""
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # what is tied must be one tensor again: a file may have it under either name
    names = _names(model, checkpoint)
    for path, parameter in _others(model, plan, rank, kept=True):
        _set(model, path, checkpoint.read(names[path]).to(device, parameter.dtype))
    for path, buffer in list(model.named_buffers()):
        owner = model.get_submodule(path.rpartition(".")[0])
        setattr(owner, path.rpartition(".")[2], (checkpoint.read(names[path]) if path in names else buffer).to(device))
    digest = hashlib.blake2b(digest_size=8)
    for path, value in model.state_dict().items():
        digest.update(described(path, value))
        for piece in checkpoint.pieces(names[path], value.dtype):
            digest.update(piece.numpy().data)
    return digest.hexdigest()


def _names(model: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """The file's name of each parameter and buffer that is saved. Raises _RenamedError where the file has others."""
    tied: dict[int, list[str]] = defaultdict(list)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        tied[id(parameter)].append(path)
    alike = {path: group for group in tied.values() for path in group}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, str] = {}
    for path, value in model.state_dict().items():
        names = [
            name
            for same in (path, *alike.get(path, ()))
            for name in (same, same.removeprefix(prefix), prefix + same)
            if name in checkpoint.entries
        ]
        if not names:
            raise _RenamedError(f"{path} has another name in the file")
        if checkpoint.entries[names[0]].shape != tuple(value.shape):
            shape = list(checkpoint.entries[names[0]].shape)
            raise InputError(f"{path} is {shape} in the file, the model has {list(value.shape)}; give this model's own")
        found[path] = names[0]
    return found


def _set(model: nn.Module, path: str, value: torch.Tensor) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))


class _RenamedError(Exception):
    """The file names parameters otherwise than the model."""
