"""Trained concepts as data, and the file formats (one module each) that store them.

Changes to a model belong in `adapters`.
"""
