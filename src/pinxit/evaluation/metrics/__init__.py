"""Metrics: scores of images, one file each."""
