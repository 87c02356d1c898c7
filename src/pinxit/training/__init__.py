"""Recipes, methods (one file each), batches, the training step and optimizers.

Run folders and their files belong in `runs`.
"""
