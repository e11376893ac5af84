"""Pull from and push to registries (OCI distribution specification v1.1)."""

from buildkit_tasks.oci.registry.pull import open_registry

__all__ = ["open_registry"]
