from buildkit_tasks.tasks import ns
