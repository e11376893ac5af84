"""Copy images between registries, layouts and archives."""
