"""This machine: its facts and its diagnosis, its cores shared between ranks, and what ends with its owner."""
