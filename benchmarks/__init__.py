"""Benchmarks of every documented speed limit; both sides are measured in one run: ``nox -s bench``."""
