"""Bake files: read by buildx, judged here, and built like any other image."""
