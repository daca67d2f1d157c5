"""The discrete-event simulator and the prism-sim command."""
