"""Serve a model over devices that come and go: leader and followers, the adaptive runtime, HTTP."""
