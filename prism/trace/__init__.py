"""The only trace schema, its files, and what is computed from a trace alone."""

from prism.trace.align import aligned, aligned_power
from prism.trace.files import TraceWriter, read_trace, trace_file, write_trace
from prism.trace.perfetto import perfetto
from prism.trace.schema import (
    CODED,
    KINDS,
    PACE,
    SCHEMA_VERSION,
    Batch,
    Clock,
    Idle,
    Kind,
    Meter,
    Power,
    Probe,
    Record,
    Span,
    Trace,
    TraceHeader,
    TraceSource,
    now_text,
)

__all__ = [
    "CODED",
    "KINDS",
    "PACE",
    "SCHEMA_VERSION",
    "Batch",
    "Clock",
    "Idle",
    "Kind",
    "Meter",
    "Power",
    "Probe",
    "Record",
    "Span",
    "Trace",
    "TraceHeader",
    "TraceSource",
    "TraceWriter",
    "aligned",
    "aligned_power",
    "now_text",
    "perfetto",
    "read_trace",
    "trace_file",
    "write_trace",
]
