"""Run images per platform, in a sandbox or in a Docker engine, and classify how they end."""
