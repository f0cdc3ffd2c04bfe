"""A run's folder: run.json, files written whole, the machine."""
