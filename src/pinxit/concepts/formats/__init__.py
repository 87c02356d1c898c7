"""File formats: one module for each; the file name is the format name."""
