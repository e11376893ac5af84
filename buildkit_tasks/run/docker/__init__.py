"""The Docker runner: load an image into an engine and run each task in a container."""
