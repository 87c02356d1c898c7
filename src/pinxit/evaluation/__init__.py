"""Metrics (one file each), the judge that chooses checkpoints, and advice in words.

Pages that show the results belong in `reports`.
"""
