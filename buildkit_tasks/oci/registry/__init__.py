"""An image in a registry as a source (OCI distribution specification v1.1)."""

from buildkit_tasks.oci.registry.pull import open_registry

__all__ = ["open_registry"]
