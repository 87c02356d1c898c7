"""The speed of pinxit, compared with a plain loop that does what the usual scripts do."""
