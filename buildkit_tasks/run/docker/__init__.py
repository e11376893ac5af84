"""The Docker runner: an image brought into an engine, and each run a container of its own."""
