"""Prepare the host: Docker engines, buildx builders and QEMU emulators."""
