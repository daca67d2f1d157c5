"""Traces to a fitted profile."""
