"""Prove that every platform in an image is what it says.

An image can lie in four places: its index, its configurations, its binaries, and the instruction set
inside them. Each is checked, and whether what it starts would find its loader and its libraries. All
problems are collected; none ends the others' checks.
"""

from buildkit_tasks.verify.contents import Rules
from buildkit_tasks.verify.programs import program_checks
from buildkit_tasks.verify.service import verify

__all__ = ["Rules", "program_checks", "verify"]
