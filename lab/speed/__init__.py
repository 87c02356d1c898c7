"""How fast pinxit is, beside a plain loop that does at each step what the field's scripts do."""
