"""A sweep: its cells, the order of its visits, and running them."""
