"""Run a platform's image without an engine: its layers unpacked, namespaces of its own around it."""
