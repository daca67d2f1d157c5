"""The only trace schema, and what is computed from a trace alone."""

from prism.trace.schema import *  # noqa: F403
