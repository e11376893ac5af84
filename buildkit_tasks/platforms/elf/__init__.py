"""Read ELF files, and build minimal ones."""
