"""This machine: its facts and its diagnosis, and what ends with its owner."""
