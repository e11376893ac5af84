"""buildx builds: the request, its outputs, caches and base images."""
