"""The prism-sim command."""
