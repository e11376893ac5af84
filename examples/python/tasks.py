from buildkit_tasks.tasks import ns  # noqa: D100, F401, INP001
