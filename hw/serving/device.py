"""The model that is served, loaded on this device."""

from typing import NamedTuple

import torch
from torch import nn

from hw.comm.control import BatchExchange, Control
from hw.comm.recorder import SpanRecorder, recorder_for
from hw.comm.staging import stager_for
from hw.machine.torch_device import torch_device
from prism.nn.distribute import DistributedTransformer, distribute
from prism.nn.exchange import Exchange
from prism.nn.families import adapter_for
from prism.nn.families.base import Adapter
from prism.nn.zoo import Loaded, fingerprint, load_model
from prism.plan import LOCAL


class ServedModel(NamedTuple):
    """A model with its adapter, the hash of its weights, and the recorder of its batches."""

    name: str
    loaded: Loaded
    adapter: Adapter
    fingerprint: str
    device: torch.device
    recorder: SpanRecorder

    @property
    def model(self) -> nn.Module:
        """The model as it is."""
        return self.loaded.model

    def exchange(self, control: Control) -> BatchExchange:
        """Open an exchange over a group that has formed."""
        return control.exchange(stager_for(self.device, self.recorder), self.recorder)

    def distributed(self, exchange: Exchange, epoch: int, recorded: bool) -> DistributedTransformer:
        """Wrap the model for the group of an epoch. Each batch brings its own plan. recorded: keep the spans."""
        recorder = self.recorder if recorded else None
        return distribute(self.model, LOCAL, exchange, recorder, epoch, self.adapter)


def load_served(name: str, weights: str | None, seed: int, threads: int) -> ServedModel:
    """Load a model for serving on the GPU where there is one. Raises PrismError for one that can't be served."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    device = torch_device()
    loaded = load_model(name, weights, seed, str(device))
    adapter = adapter_for(loaded.model)
    return ServedModel(name, loaded, adapter, fingerprint(loaded.model), device, recorder_for(device, 0))
