"""The work of a batch: its kernels, and the graph that puts them in order."""

from prism.workload.graph import Operation, WorkloadGraph, build
from prism.workload.kernels import WORD, Kernel, OpClass, attention, codec, elementwise, gemm, norm

__all__ = [
    "WORD",
    "Kernel",
    "OpClass",
    "Operation",
    "WorkloadGraph",
    "attention",
    "build",
    "codec",
    "elementwise",
    "gemm",
    "norm",
]
