"""The prism-hw command."""
