"""Run a platform's image and tell how it ended."""
