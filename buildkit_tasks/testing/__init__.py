"""What the Nox sessions and the pytest plugin share: the images under test."""
