"""Ways to learn from pictures, one file each."""
