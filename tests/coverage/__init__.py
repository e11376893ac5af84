"""Measure which lines and branches of the package the tests execute: ``nox -s coverage``."""
