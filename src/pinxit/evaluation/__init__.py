"""Metrics (one file each), the judge that scores checkpoints, and findings with advice.

Pages that show the results belong in `reports`.
"""
