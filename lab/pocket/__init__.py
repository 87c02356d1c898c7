"""Experiments on the training of pocket."""
