"""The choice between CUDA and the CPU."""

import torch


def torch_device() -> torch.device:
    """Return the GPU where torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
