"""Real ranks: GLOO exchange, staging, recording, and the prism-hw command."""
