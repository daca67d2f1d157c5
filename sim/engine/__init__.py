"""The discrete-event engine: devices, media, and ranks that go through a script."""
