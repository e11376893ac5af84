"""Settings: their keys, their sources and how these are merged."""
