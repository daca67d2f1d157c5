"""All of the core that computes with torch: the partitioned forward pass, model families, codecs, exchanges."""
