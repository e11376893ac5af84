"""The sandbox runner: unpack an image's layers and run it in Linux namespaces, without an engine."""
