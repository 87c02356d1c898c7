"""Kinds of adapter: one module for each; the file name is the name of the kind."""
