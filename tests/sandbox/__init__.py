"""The sandbox on the real kernel, as root and as an ordinary user; no test needs an engine."""
