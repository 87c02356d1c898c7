"""Controls: ways to preserve the structure of a source image, one file each."""
