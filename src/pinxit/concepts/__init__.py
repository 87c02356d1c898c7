"""What was learned, as data, and the file formats (one file each) in which it is stored.

How it changes a model belongs in `adapters`.
"""
