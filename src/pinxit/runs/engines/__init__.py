"""Engines: where the workers of many runs are, one file each."""
