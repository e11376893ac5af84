"""Image layers: decompress and read them, and merge their file trees."""
