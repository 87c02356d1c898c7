"""Ways to judge pictures, one file each."""
