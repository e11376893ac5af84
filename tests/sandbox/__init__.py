"""The sandbox on the real kernel, as root and as an ordinary user; no engine is needed for any of it."""
