"""The model of a run and its inputs."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hw.inputs.samples import Inputs, Sample, load_images, load_text
from hw.run.config import RunConfig
from prism.errors import InputError
from prism.nn.families import adapter_for
from prism.nn.weights.share import load_share
from prism.nn.zoo import Loaded, fingerprint, load_model
from prism.spec import ModelSpec


class Workpiece:
    """A model loaded for one configuration, with its adapter and inputs.

    stage_of: the rank whose stage's weights are all that is loaded; None for the whole model.
    inputs: None on a rank that receives its rows. tokens: of the first input, or the model's own where there is none.
    """

    def __init__(self, config: RunConfig, device: torch.device, with_inputs: bool, stage_of: int | None = None) -> None:
        self._device, self._whole = device, stage_of is None
        if stage_of is None:
            self.loaded: Loaded = load_model(config.model, config.weights, config.seed, str(device))
        else:
            self.loaded, self.fingerprint = load_share(
                config.model, config.weights, config.seed, device, config.plan, stage_of
            )
        self.adapter = adapter_for(self.loaded.model)
        self.spec: ModelSpec = self.adapter.spec
        self.inputs: Inputs | None = _load_inputs(config, self.loaded) if with_inputs else None
        self.tokens = self._first_tokens()

    def _first_tokens(self) -> int:
        if self.inputs is None or self.loaded.kind == "image":  # every image has the model's own number
            return self.spec.tokens
        return int(self.call(self.inputs.batch(0, 1, wrap=True))["input_ids"].shape[1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash the weights."""
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

    def call(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Make the model's keyword arguments of some samples; empty on a rank without inputs."""
        if self.inputs is None:
            return {}
        return {name: tensor.to(self._device) for name, tensor in self.inputs.collate(samples).items()}

    def reference(self, call: dict[str, Any]) -> Any:
        """Run the model as it is, on this device alone; None where it holds a stage alone."""
        if not self._whole:
            return None
        return self.loaded.model(**call, **self.adapter.forced)


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
