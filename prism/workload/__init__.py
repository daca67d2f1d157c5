"""The work of a batch: its kernels, and the graph that puts them in order."""

from prism.workload.ends import answer_bytes, input_bytes
from prism.workload.graph import WHOLE, Operation, WorkloadGraph, build, outline
from prism.workload.kernels import WORD, Kernel, OpClass, attention, codec, elementwise, gemm, norm

__all__ = [
    "WHOLE",
    "WORD",
    "Kernel",
    "OpClass",
    "Operation",
    "WorkloadGraph",
    "answer_bytes",
    "attention",
    "build",
    "codec",
    "elementwise",
    "gemm",
    "input_bytes",
    "norm",
    "outline",
]
