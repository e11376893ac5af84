"""Builds by ``docker buildx``: requests, outputs, caches, base images, bake files."""
