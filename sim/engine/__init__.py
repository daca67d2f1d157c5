"""Simulate batches by discrete events: devices, media, and ranks that go through a script."""
