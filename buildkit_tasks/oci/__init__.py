"""Container images: sources to read them from, their documents, layers and copies."""
