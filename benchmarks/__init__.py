"""Both sides of every promise about speed, measured in one run: ``nox -s bench``."""
