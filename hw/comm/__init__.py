"""The process group, the exchange over it, staging, clocks and spans."""
