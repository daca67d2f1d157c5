"""What ranks say to each other: the group, its control plane, the exchange over it, staging, clocks and spans."""
