"""Settings: keys, sources and how they are merged."""
