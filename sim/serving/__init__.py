"""Simulate serving: requests, a fleet that may lose devices, and the policy in the loop."""
