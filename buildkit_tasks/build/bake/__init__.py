"""Bake files: parsed by buildx, checked here, and built like any other image."""
