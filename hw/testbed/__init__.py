"""Imitate links: network namespaces around one half-duplex access point."""
