"""Base models: model families (one file each), text encoders, noise schedules, weight sources.

A file in `families` contains all knowledge about its model family. Code that changes a loaded model
belongs in `adapters`.
"""
