"""Invoke and Nox tasks that build, prove and run multi-architecture container images."""
