"""What Nox sessions and pytest share: the images under test."""
