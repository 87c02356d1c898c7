"""Hostile and damaged files, and a watch that sees whether code runs."""
