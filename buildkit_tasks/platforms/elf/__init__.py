"""Reading and making executables: bytes in, values out."""
