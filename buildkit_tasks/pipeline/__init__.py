"""The order of the steps: set up, build, verify, run, release."""
