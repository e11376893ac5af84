"""Print the machine that Python runs on."""

import platform


def main() -> None:
    """Print the machine as ``uname -m`` has it, in brackets."""
    print(f"Python {platform.python_version()} runs on [{platform.machine()}].")
