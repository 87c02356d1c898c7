"""Optimizers, one file each; the name of an optimizer is the name of its file."""
