"""Measure links: alpha and beta, round trips, sustained goodput."""
