"""Load a model and its inputs for a run, and keep them for the next step that wants the same."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hw.inputs.samples import Inputs, Sample, load_images, load_text
from hw.run.config import RunConfig
from prism.errors import InputError
from prism.nn.families import adapter_for
from prism.nn.zoo import Loaded, load_model
from prism.spec import ModelSpec


class Workpiece:
    """inputs: None on a rank that is sent its rows. fingerprint: hash of the weights."""

    def __init__(self, config: RunConfig, device: torch.device, with_inputs: bool) -> None:
        self._device = device
        self.loaded: Loaded = load_model(config.model, config.weights, config.seed, str(device))
        self.adapter = adapter_for(self.loaded.model)
        self.spec: ModelSpec = self.adapter.spec
        self.inputs: Inputs | None = _load_inputs(config, self.loaded) if with_inputs else None

    @functools.cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.loaded.model)

    @staticmethod
    def key(config: RunConfig) -> tuple[Any, ...]:
        """List what two configurations must share to share a workpiece."""
        return (
            config.model,
            config.weights,
            config.seed,
            config.images,
            config.text,
            config.resize,
            config.tokens,
            config.plan.embed,
        )

    def tokens(self) -> int:
        """Tokens of the first input."""
        call = self.call(self.inputs.batch(0, 1, wrap=True)) if self.inputs else {}
        return int(call["input_ids"].shape[1]) if "input_ids" in call else self.spec.tokens

    def call(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The model's keyword arguments for some samples; empty on a rank without inputs."""
        if self.inputs is None:
            return {}
        return {name: tensor.to(self._device) for name, tensor in self.inputs.collate(samples).items()}

    def reference(self, call: dict[str, Any]) -> Any:
        """Run the whole model here, undistributed."""
        return self.loaded.model(**call, **self.adapter.forced)


def fingerprint(model: torch.nn.Module) -> str:
    """Hash every parameter's name, shape and values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.state_dict().items():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _load_inputs(config: RunConfig, loaded: Loaded) -> Inputs:
    if loaded.kind == "image":
        if config.text:
            raise InputError(f"{config.model} takes images, and --text is given; pass --images")
        if config.tokens:
            raise InputError(f"tokens {config.tokens}: an image model has its own number; leave --tokens out")
        # the bundled samples suit any image model once they are resized; the user's own are resized when asked
        return load_images(Path(config.images) if config.images else None, loaded, config.resize)
    if config.images:
        raise InputError(f"{config.model} takes text, and --images is given; pass --text")
    return load_text(Path(config.text) if config.text else None, loaded, config.tokens)
