"""Micro-benchmarks that belong to no model."""
