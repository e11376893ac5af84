"""Layers: decompress, read and overlay their file trees."""
