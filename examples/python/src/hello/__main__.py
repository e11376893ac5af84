"""Run the program as ``python -m hello``."""

from hello import main

main()
