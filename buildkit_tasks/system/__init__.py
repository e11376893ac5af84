"""Commands, processes, locks, files and Debian packages."""
