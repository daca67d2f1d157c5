"""Serving a model over devices that come and go: membership, groups, the adaptive runtime, HTTP."""
