"""This repository's own tasks: the collection, as any repository has it."""

from buildkit_tasks.tasks import ns

__all__ = ["ns"]
