"""What this machine must have to build and run: engines, builders, emulators."""
