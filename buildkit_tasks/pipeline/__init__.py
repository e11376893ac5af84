"""The order of the steps: setup, build, verify, run, release."""
