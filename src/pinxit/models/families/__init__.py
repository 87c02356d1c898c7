"""Families of base models, one file each."""
