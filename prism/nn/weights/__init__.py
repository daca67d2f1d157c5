"""Load the weights of a stage alone."""
